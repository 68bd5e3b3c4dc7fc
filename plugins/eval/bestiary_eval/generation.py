"""lm-eval's generation_kwargs as sampling parameters."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from bestiary import RequestError, SamplingParams

log = logging.getLogger("bestiary.eval")

DEFAULT_MAX_TOKENS = 256
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_PASSED = ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
# What tasks say beside these, with the values that change nothing here.
_IDLE: Mapping[str, tuple[Any, ...]] = {"num_beams": (1,), "use_cache": (True, False), "early_stopping": (False, None)}


def sampling(options: Mapping[str, Any], stop: Sequence[str], *, room: int) -> SamplingParams:
    """How to answer a request. What the task leaves open is the model's generation_config's, as with transformers.

    Args:
        options: the task's ``generation_kwargs``; ``max_gen_toks`` has three other names.
        stop: texts that end the answer.
        room: most tokens of prompt and answer; an answer may take half of it where its task asks for all.

    Raises:
        RequestError: an argument that means something, and nothing that this engine does.
    """
    lengths = [options[name] for name in _LENGTHS if options.get(name) is not None]
    most = int(lengths[0]) if lengths else DEFAULT_MAX_TOKENS
    if most >= room:
        log.warning("answers of %d tokens don't fit beside a prompt in %d: they end after %d", most, room, room // 2)
        most = room // 2
    for name, value in options.items():
        if name not in (*_LENGTHS, *_PASSED, "until", "do_sample", "temperature") and value not in _IDLE.get(name, ()):
            known = ", ".join((*_LENGTHS[:1], "until", "do_sample", "temperature", *_PASSED))
            problem = "is an argument of generation that the engine does not have"
            hint = "take it out of the task, or ask another"
            subject, found = f"generation_kwargs, {name}", repr(value)[:60]
            raise RequestError("E-EVAL-GENERATION", subject, problem, found=found, expected=known, hint=hint)
    given = {name: options[name] for name in _PASSED if options.get(name) is not None}
    return SamplingParams(max_tokens=most, stop=list(stop), temperature=_temperature(options), **given)


def _temperature(options: Mapping[str, Any]) -> float | None:
    """0 unless the task samples; None leaves it to the model's generation_config."""
    said = options.get("temperature")
    if not options.get("do_sample", bool(said)):
        return 0.0
    return None if said is None else float(said)
