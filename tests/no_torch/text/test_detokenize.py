"""Text as it comes: valid characters only, pieces that concatenate, stop strings that never show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_models import byte_fallback, byte_level

from bestiary.core.text.detokenize import Detokenizer, StopSearch

BYTES, PIECES = byte_level(), byte_fallback()
TEXTS = ["hello world", "日本語 👨‍👩‍👧 ünïcode", "hello STOP world", "", "aSTaSTOaSTOP"]


def pieces_of(tokenizer, prompt, tokens, stops=(), each=1):
    """The text's growth a token (or ``each``) at a time, the whole text, and the stop string."""
    out, pieces, stop = Detokenizer(tokenizer, prompt, stops=stops), [], None
    for start in range(0, len(tokens), each):
        before = len(out.text)
        stop = out.push(tokens[start : start + each])
        pieces.append(out.text[before:])
        if stop:
            break
    else:
        before = len(out.text)
        stop = out.finish()
        pieces.append(out.text[before:])
    return pieces, out.text, stop


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("each", [1, 2, 3, 100])
def test_pieces_are_whole_characters_and_concatenate(text, each):
    tokens = BYTES.encode(text, add_special_tokens=False)
    pieces, whole, _ = pieces_of(BYTES, BYTES.encode("x"), tokens, each=each)
    assert "".join(pieces) == whole == text and not any("\ufffd" in piece for piece in pieces)


@given(text=st.text(max_size=30), cut=st.integers(0, 200), each=st.integers(1, 5))
def test_any_text_cut_anywhere_is_what_decode_gives(text, cut, each):
    tokens = BYTES.encode(text, add_special_tokens=False)[:cut]
    pieces, whole, _ = pieces_of(BYTES, BYTES.encode("p"), tokens, each=each)
    assert "".join(pieces) == whole == BYTES.decode(tokens)


# Byte fallback shows a run of bytes that is no UTF-8 byte by byte, valid beginnings included, so only characters are drawn.
UNITS = [[260], [261], [262], [265], [3 + 0xC3, 3 + 0xA9], [3 + 0xE6, 3 + 0x97, 3 + 0xA5], [3 + 0x41]]


@given(units=st.lists(st.sampled_from(UNITS), max_size=12), prompt=st.sampled_from([[1], [1, 260], [1, 262, 264]]))
def test_byte_fallback_continues_the_prompt(units, prompt):
    tokens = [token for unit in units for token in unit]
    _, whole, _ = pieces_of(PIECES, prompt, tokens)
    assert whole == PIECES.decode([*prompt, *tokens])[len(PIECES.decode(prompt)) :]


def test_a_leading_space_is_kept_where_text_goes_on():
    paris = PIECES.backend.token_to_id("▁Paris")
    assert pieces_of(PIECES, [1, PIECES.backend.token_to_id("a")], [paris])[1] == " Paris"
    assert pieces_of(PIECES, [1], [paris])[1] == "Paris"


def test_a_prompt_that_ends_within_a_character_does_not_hold_the_answer_back():
    prompt = BYTES.encode("é", add_special_tokens=False)[:1]
    assert pieces_of(BYTES, prompt, BYTES.encode("hello", add_special_tokens=False))[1] == "hello"


def test_special_tokens_show_only_when_asked():
    tokens = [*BYTES.encode("a", add_special_tokens=False), BYTES.eos_token_id]
    assert pieces_of(BYTES, [0], tokens)[1] == "a"
    shown = Detokenizer(BYTES, [0], skip_special_tokens=False)
    shown.push(tokens)
    shown.finish()
    assert shown.text == "a<end>"


def stops_of(tokenizer, text, stops, each=1):
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces, whole, stop = pieces_of(tokenizer, [0], tokens, stops, each)
    assert "".join(pieces) == whole
    return whole, stop


@pytest.mark.parametrize("each", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("text", "stops", "whole", "stop"),
    [
        ("hello STOP world", ["STOP"], "hello ", "STOP"),
        ("hello world", ["STOP", "wor"], "hello ", "wor"),
        ("hello wor", ["world"], "hello wor", None),
        ("日本語で", ["語"], "日本", "語"),
        ("a👨‍👩‍👧b", ["👩"], "a👨\u200d", "👩"),
        ("aabaac", ["aac"], "aab", "aac"),
        ("xabcdx", ["bc", "abcd"], "xa", "bc"),
        ("xabcdx", ["abcd", "cdx"], "x", "abcd"),
        ("xababac", ["abac"], "xab", "abac"),
        ("STOP", ["STOP"], "", "STOP"),
        ("one\n\ntwo", ["\n\n"], "one", "\n\n"),
    ],
)
def test_text_ends_before_the_first_complete_stop_string(text, stops, whole, stop, each):
    assert stops_of(BYTES, text, stops, each) == (whole, stop)


@given(
    text=st.text("ab", max_size=20),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 4)),
)
def test_a_stop_string_is_never_shown_however_the_text_is_cut(text, stops, cuts):
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    search, shown, found, at = StopSearch(stops), "", None, 0
    for size in [*cuts, len(text)]:
        piece, found = search.push(text[at : at + size])
        at += size
        shown += piece
        assert text.startswith(shown) and not any(stop in shown for stop in stops)
        if found:
            assert text[: min(ends)].endswith(found) and shown + found == text[: min(ends)]
            assert found == max((s for s in stops if text[: min(ends)].endswith(s)), key=len)
            return
    assert not ends and shown + search.flush() == text
