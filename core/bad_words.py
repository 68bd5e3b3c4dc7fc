"""From words that must not be said to the token sequences that say them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bestiary.core.sampling_checks import refuse

Encode = Callable[[str], Sequence[int]]


def bad_token_ids(words: Iterable[str], encode: Encode | None) -> tuple[tuple[int, ...], ...]:
    """Each word's tokens as the text's first word and as a later one: without and with a space before it.

    Args:
        words: spaces at their start are dropped.
        encode: text → token ids, without special tokens; None where there is no tokenizer.

    Returns:
        Token sequences without repeats, in the words' order.

    Raises:
        RequestError: there is no tokenizer, or a word has no tokens.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        if encode is None:
            raise refuse("bad_words", "words need a tokenizer and there is none", word, "token ids", _BIAS)
        bare = word.lstrip()
        for text in (bare, " " + bare):
            tokens = tuple(encode(text))
            if not bare or not tokens:
                raise refuse("bad_words", "a word without tokens", word, "text that the tokenizer keeps")
            found[tokens] = None
    return tuple(found)


_BIAS = "logit_bias and allowed_token_ids take token ids"
