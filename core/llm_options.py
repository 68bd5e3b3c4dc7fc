"""The types of ``LLM``'s arguments, checked before anything is loaded: a wrong one is a sentence, not a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from bestiary.core.errors import ConfigError


def check_options(
    *,
    plugins: object,
    prefer: object,
    kernels: object,
    lock: object,
    progress: object,
    flags: Mapping[str, object],
) -> None:
    """Refuse values of the wrong type.

    Args:
        flags: those that are True or False, by name.

    Raises:
        ConfigError: naming the argument, what was found and what was expected.
    """
    # Text is a sequence of its letters, each of which would be looked for as a module.
    if isinstance(plugins, str | bytes | Mapping) or not isinstance(plugins, Iterable):
        raise _wrong("plugins", plugins, 'a list of modules, objects or module names, such as ["my_plugin"]')
    for name, value, example in (
        ("prefer", prefer, '{"LlamaForCausalLM": "bestiary-llama"}'),
        ("kernels", kernels, '{"rms_norm": "torch"}'),
    ):
        if value is not None and not _names(value):
            raise _wrong(name, value, f"a dict from names to names, such as {example}")
    if lock is not None and not isinstance(lock, str | Path):
        raise _wrong("lock", lock, "the path of a lock file")
    if progress is not None and not all(callable(getattr(progress, name, None)) for name in _STEPS):
        raise _wrong("progress", progress, "an object with the methods start, advance and finish")
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise _wrong(name, value, "True or False")


_STEPS = ("start", "advance", "finish")


def _names(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, str) for pair in value.items() for one in pair)


def _wrong(field: str, value: object, expected: str) -> ConfigError:
    found = f"{type(value).__name__} {value!r:.80}"
    return ConfigError("E-LLM-OPTION", field, "is of the wrong type", found=found, expected=expected)
