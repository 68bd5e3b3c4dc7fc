"""The kinds of descriptors: which hook takes which, the names each claims, and the check at the boundary."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bestiary.core.plugins.resolve import is_reference
from bestiary.spec import (
    Command,
    Executor,
    Fusion,
    Grammar,
    Kernel,
    LogitsProcessor,
    Model,
    Op,
    Quantization,
    Reader,
)

Claims = tuple[tuple[str, str], ...]

# The command line's own words. A plugin can't take one of them over.
RESERVED_COMMANDS = frozenset(
    [
        *("run", "convert", "verify", "build", "generate", "chat", "export", "cache", "plan-memory", "new"),
        *("plugins", "kernels", "check", "check-kernel", "doctor", "lock", "trace", "bench", "quality", "diff"),
        "quantize",
    ]
)

#: What a fallback claims: the architectures that nobody else does. So there is one, or ``prefer`` decides.
ANY = "any-architecture"


# What a plugin must provide for its version to matter to a conversion, and to an engine.
CONVERTING = frozenset(("model", "reader", "quantization"))
BUILDING = CONVERTING | {"op", "kernel", "fusion"}


@dataclass(frozen=True)
class Kind:
    """One hook's descriptors: ``claims`` gives the (kind of name, name) pairs that must be unique among plugins."""

    hook: str
    type: type[Any]
    claims: Callable[[Any], Claims]
    references: tuple[str, ...]


def _by_name(kind: str) -> Callable[[Any], Claims]:
    return lambda descriptor: ((kind, descriptor.name),)


def _model_claims(model: Model) -> Claims:
    architectures = tuple(("architecture", name) for name in model.architectures)
    fallback = (("fallback", ANY),) if model.fallback is not None else ()
    return (("model", model.name), *architectures, *(("gguf architecture", name) for name in model.gguf), *fallback)


def _kernel_claims(kernel: Kernel) -> Claims:
    return (("kernel", f"{kernel.op}:{kernel.name}"),)


KINDS: tuple[Kind, ...] = (
    Kind(
        "bestiary_register_models",
        Model,
        _model_claims,
        ("config", "model", "weights", "gguf_config", "fallback"),
    ),
    Kind("bestiary_register_ops", Op, _by_name("op"), ("declaration",)),
    Kind("bestiary_register_kernels", Kernel, _kernel_claims, ("run", "pack")),
    Kind("bestiary_register_fusions", Fusion, _by_name("fusion"), ()),
    Kind("bestiary_register_quantizations", Quantization, _by_name("quantization"), ("method",)),
    Kind("bestiary_register_readers", Reader, _by_name("reader"), ("sniff", "reader")),
    Kind("bestiary_register_logits_processors", LogitsProcessor, _by_name("logits processor"), ("run",)),
    Kind("bestiary_register_grammars", Grammar, _by_name("grammar"), ("provider",)),
    Kind("bestiary_register_commands", Command, _by_name("command"), ("app",)),
    Kind("bestiary_register_executors", Executor, _by_name("executor"), ("run",)),
)
BY_HOOK: Mapping[str, Kind] = MappingProxyType({kind.hook: kind for kind in KINDS})
BY_TYPE: Mapping[type, Kind] = MappingProxyType({kind.type: kind for kind in KINDS})


def problem_with(kind: Kind, descriptor: Any, *, own: bool) -> str | None:
    """Why ``descriptor`` can't be registered through ``kind``'s hook, as a clause; None where it can.

    Args:
        own: the SDK registers it: an op needs no prefix, a command may be one of the reserved words.
    """
    wanted = kind.type.__name__
    if not isinstance(descriptor, kind.type):
        return f"register() takes a {wanted}, got {_what(descriptor)}"
    hints = typing.get_type_hints(kind.type)
    for field in dataclasses.fields(descriptor):
        value = getattr(descriptor, field.name)
        if not _fits(value, hints[field.name]):
            return f"{wanted}.{field.name} must be {_spell(hints[field.name])}, got {_what(value)} {value!r:.80}"
    for name in kind.references:
        for reference in _references(getattr(descriptor, name)):
            if not is_reference(reference):
                return f"{wanted}.{name} must be 'module:attribute', got {reference!r:.80}"
    for name in (descriptor.name, *(name for _, name in kind.claims(descriptor))):
        if not name.strip() or not name.isprintable():
            return f"{wanted} has an empty or unprintable name {name!r:.80}"
    if isinstance(descriptor, Kernel) and set(descriptor.name) & set(":="):
        return f"Kernel.name must be free of ':' and '=', got {descriptor.name!r:.80}"
    return None if own else _foreign(descriptor)


def frozen(descriptor: Any) -> Any:
    """The descriptor with its mappings copied and read-only, so that later changes by its plugin have no effect."""
    changes = {
        field.name: MappingProxyType(dict(value))
        for field in dataclasses.fields(descriptor)
        if isinstance(value := getattr(descriptor, field.name), Mapping)
    }
    return dataclasses.replace(descriptor, **changes) if changes else descriptor


def _foreign(descriptor: Any) -> str | None:
    if isinstance(descriptor, Op) and "::" not in descriptor.name:
        return f"op {descriptor.name!r} needs its plugin's name in front, as in 'myplugin::{descriptor.name}'"
    if isinstance(descriptor, Command) and descriptor.name in RESERVED_COMMANDS:
        return f"command {descriptor.name!r} is one of bestiary's own"
    return None


def _references(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(value.values()) if isinstance(value, Mapping) else (typing.cast(str, value),)


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if origin is Mapping:
        key, item = arguments
        return isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if origin is Callable:
        return callable(value)
    return isinstance(value, hint)


def _spell(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return text.replace("collections.abc.", "").replace("bestiary.spec.", "")


def _what(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
