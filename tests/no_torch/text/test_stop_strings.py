"""Stop strings and ``min_tokens``, beside the rule written plainly."""

from __future__ import annotations

import numpy as np
from canary_numbers import params
from hypothesis import given
from hypothesis import strategies as st
from text_models import byte_level

from bestiary.core.answer import TextAnswer
from bestiary.core.runtime.request import Request

BYTES = byte_level()


def certain(tokens):
    return BYTES.decode(tokens).rstrip("\N{REPLACEMENT CHARACTER}")


def plainly(tokens, stops, min_tokens):
    """The first stop string that ends in the text of a token after the first ``min_tokens``, the longest of those that end
    together; and the text before it."""
    for count in range(min_tokens + 1, len(tokens) + 1):
        text = certain(tokens[:count])
        for end in range(len(certain(tokens[: count - 1])) + 1, len(text) + 1):
            found = [stop for stop in stops if text[:end].endswith(stop)]
            if found:
                stop = max(found, key=len)
                return text[: end - len(stop)], stop
    return BYTES.decode(tokens), None


def answered(tokens, stops, min_tokens, every):
    """What an answer makes of the tokens, and its text as a reader saw it, who looks after each ``every``."""
    chosen = params(max_tokens=len(tokens), min_tokens=min_tokens, stop=tuple(stops))
    request = Request("0", [0], chosen, max_seq_len=len(tokens) + 1)
    answer, seen = TextAnswer(request, BYTES), ""
    for count, token in enumerate(tokens, 1):
        request._kept = np.append(request._kept, np.int32(token))
        request.stop_reason = answer.added(None)
        if request.stop_reason is not None:
            request.finish_reason = "stop"
            break
        if count % every == 0:
            seen += answer.piece(False).text
    request.finish_reason = request.finish_reason or "length"
    answer.end(0.0)
    return answer.output().text, request.stop_reason, seen + answer.piece(True).text


@given(
    text=st.text("abé", min_size=1, max_size=16),
    stops=st.lists(st.text("abé", min_size=1, max_size=5), min_size=1, max_size=3),
    least=st.integers(0, 16),
    every=st.integers(1, 5),
)
def test_the_first_that_ends_after_min_tokens_ends_the_text_wherever_it_began(text, stops, least, every):
    tokens = [one for letter in text for one in BYTES.encode(letter, add_special_tokens=False)]
    least = min(least, len(tokens))
    expected, stop = plainly(tokens, stops, least)
    assert answered(tokens, stops, least, every) == (expected, stop, expected)


def test_one_that_began_before_min_tokens_ends_the_answer_and_is_never_shown():
    tokens = [one for letter in "xaSTOPb" for one in BYTES.encode(letter, add_special_tokens=False)]
    found = [answered(tokens, ["STOP"], least, 1)[:2] for least in range(8)]
    assert found == [("xa", "STOP")] * 6 + [("xaSTOPb", None)] * 2
