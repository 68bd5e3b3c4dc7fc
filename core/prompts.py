"""What people pass as prompts, turned into token ids and checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from bestiary.core.errors import RequestError, shown
from bestiary.core.text.tokenizer import Tokenizer

PromptInput = str | Sequence[int] | Mapping[str, Any]


class Prompt(NamedTuple):
    """A prompt's text, if it came as text, and its token ids."""

    text: str | None
    token_ids: list[int]


def as_prompts(prompts: object) -> list[PromptInput]:
    """One prompt or several, as a list. A list of integers is one prompt of token ids.

    Raises:
        RequestError: neither a prompt nor a list of prompts.
    """
    if isinstance(prompts, str | Mapping):
        return [cast(PromptInput, prompts)]
    if isinstance(prompts, bytes) or not isinstance(prompts, Sequence):
        raise _refuse("prompts", "not a prompt or a list of prompts", prompts)
    if prompts and all(isinstance(each, int) for each in prompts):
        return [cast(PromptInput, prompts)]
    return list(prompts)


def read_prompt(
    prompt: object, tokenizer: Tokenizer | None, *, vocab_size: int, max_seq_len: int, keep: int | None = None
) -> Prompt:
    """A prompt's tokens.

    Args:
        prompt: text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``.
        vocab_size: width of the logits.
        max_seq_len: most tokens of prompt and output together.
        keep: only so many of the last tokens are used; None for all.

    Raises:
        RequestError: empty, of the wrong type, ids outside the vocabulary, or no room left for output.
    """
    text, ids = _parts(prompt)
    if text is not None:
        if tokenizer is None:
            hint = "pass token ids, or load a tokenizer"
            raise RequestError("E-REQ-PROMPT", "prompt", "text needs a tokenizer and there is none", hint=hint)
        # A token is at most a few hundred bytes; far longer text can't fit and need not be tokenized to know it.
        if len(text) > 1024 * max_seq_len:
            raise _too_long(f"{len(text)} characters", max_seq_len)
        ids = tokenizer.encode(text)
    if not ids:
        raise RequestError("E-REQ-PROMPT", "prompt", "empty", found="0 tokens", expected="at least 1 token")
    if max(ids) >= vocab_size or min(ids) < 0:
        wrong = next(token for token in ids if not 0 <= token < vocab_size)
        expected = f"ids from 0 to {vocab_size - 1}"
        raise RequestError(
            "E-REQ-PROMPT", "prompt", "not in the vocabulary", found=f"token id {wrong}", expected=expected
        )
    if keep is not None:
        ids = ids[-keep:]
    if len(ids) >= max_seq_len:
        raise _too_long(f"{len(ids)} tokens", max_seq_len)
    return Prompt(text, ids)


def _parts(prompt: object) -> tuple[str | None, list[int]]:
    if isinstance(prompt, Mapping):
        given = [key for key in ("prompt", "prompt_token_ids") if prompt.get(key) is not None]
        if len(given) != 1 or len(prompt.keys() - {"prompt", "prompt_token_ids"}):
            raise _refuse("prompt", "unclear which prompt is meant", sorted(map(str, prompt)))
        value = prompt[given[0]]
        if (given[0] == "prompt") != isinstance(value, str):
            raise _refuse(given[0], "of the wrong type", value)
        return _parts(value)
    if isinstance(prompt, str):
        return prompt, []
    if isinstance(prompt, bytes) or not isinstance(prompt, Sequence):
        raise _refuse("prompt", "of the wrong type", prompt)
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, int):
            raise _refuse("prompt", "not a token id", token)
    return None, list(prompt)


def _refuse(field: str, problem: str, found: object) -> RequestError:
    expected = 'text, a list of token ids, {"prompt": text} or {"prompt_token_ids": ids}'
    return RequestError("E-REQ-PROMPT", field, problem, found=shown(found), expected=expected)


def _too_long(found: str, max_seq_len: int) -> RequestError:
    expected = f"at most {max_seq_len - 1} prompt tokens (max_seq_len {max_seq_len} - 1 for output)"
    hint = "shorten the prompt or raise max_seq_len"
    return RequestError("E-REQ-LENGTH", "prompt", "longer than the context", found=found, expected=expected, hint=hint)
