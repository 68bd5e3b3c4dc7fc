"""No check of the kit can be skipped in silence: what a class may set, and what it may not touch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bestiary.core.conformance.waivers import Sealed

#: What a plugin's class sets.
SETTINGS = ("model", "configs", "reference", "waived", "plugins", "prefer")
_SHORTEST = 12
_SKIPPING = ("skip", "skipif", "xfail")
# Names through which pytest, or a class with a mind of its own, would lose checks.
_PYTEST = ("setup_class", "setup_method", "teardown_class", "teardown_method", "__test__", "__init__", "__new__")


class Guarded(Sealed):
    """A class of checks that refuses to lose one, when it is made and afterwards.

    Raises:
        TypeError: a check or a part of the kit is overridden, a setting is missing, empty or changed, a waiver has no
            reason or names no check, or a mark skips.
    """

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Guarded:
        cls = super().__new__(mcs, name, bases, body)
        kit = next((base for base in reversed(cls.__mro__) if isinstance(base, Guarded)), cls)
        if kit is not cls:
            _check_settings(cls, body)
            for member, value in body.items():
                _check_member(cls, kit, member, value)
        return cls

    def __setattr__(cls, name: str, value: Any) -> None:
        if name == "pytestmark":
            _check_marks(cls, value)
        super().__setattr__(name, value)


def checks_of(cls: type) -> tuple[str, ...]:
    """The kit's checks, in order."""
    kit = next(base for base in reversed(cls.__mro__) if isinstance(base, Guarded))
    return tuple(name for name in vars(kit) if name.startswith("test_"))


def waiver(cls: Any, check: str, config: str) -> str | None:
    """The reason why a check is waived for a config, if it is."""
    reason: str | None = cls.waived.get(check) or cls.waived.get(f"{check}[{config}]")
    return reason


def check_marks(cls: Any, item: Any) -> None:
    """Refuse a mark that skips one of the kit's checks, wherever it was put (TypeError)."""
    _check_marks(cls, list(item.iter_markers()), what=item.name)


def _check_settings(cls: Any, body: Mapping[str, Any]) -> None:
    name = cls.__name__
    parents = [base for base in cls.__mro__[1:-1] if isinstance(base, Guarded)]
    for setting in ("model", "configs", "reference", "waived"):
        if setting in body and (owner := next((base for base in parents[:-1] if "model" in vars(base)), None)):
            raise TypeError(f"{name}.{setting}: belongs into {owner.__name__}, which 'bestiary check' runs too")
    if not isinstance(cls.model, str) or not cls.model:
        raise TypeError(f"{name}.model: needs the name under which the plugin registers the model, like 'llama'")
    good = isinstance(cls.configs, Mapping) and all(
        isinstance(key, str) and key and isinstance(one, Mapping) and one for key, one in cls.configs.items()
    )
    if not good or not cls.configs:
        raise TypeError(f"{name}.configs: needs at least one config, as {{'name': {{a tiny config.json}}}}")
    if not isinstance(cls.waived, Mapping):
        raise TypeError(f"{name}.waived: is not a mapping from checks to reasons")
    known = set(_waivable(cls))
    for check, reason in cls.waived.items():
        if check not in known:
            raise TypeError(f"{name}.waived: the kit has no check {check!r}; it has {', '.join(checks_of(cls))}")
        if not isinstance(reason, str) or len(reason.split()) < 2 or len(reason.strip()) < _SHORTEST:
            raise TypeError(f"{name}.waived: {check} needs a reason in words, and has {reason!r}")


def _waivable(cls: Any) -> Iterator[str]:
    for check in checks_of(cls):
        yield check
        yield from (f"{check}[{config}]" for config in cls.configs)


def _check_member(cls: Any, kit: type, member: str, value: Any) -> None:
    name = cls.__name__
    if member in checks_of(cls):
        if member not in cls.waived:
            raise TypeError(
                f"{name}.{member}: a check of the kit is overridden without a written reason; "
                f"waived = {{{member!r}: 'the reason'}} gives one"
            )
        if not callable(value):
            raise TypeError(f"{name}.{member}: is no function; a waived check needs no replacement")
    elif member == "pytestmark":
        _check_marks(cls, value)
    elif member in _PYTEST or (member in vars(kit) and member not in SETTINGS and not member.startswith("__")):
        raise TypeError(f"{name}.{member}: belongs to the conformance kit or to pytest, and would change its checks")


def _check_marks(cls: Any, marks: Any, what: str | None = None) -> None:
    for mark in marks if isinstance(marks, list | tuple) else [marks]:
        if getattr(mark, "name", None) in _SKIPPING:
            subject = cls.__name__ if what is None else f"{cls.__name__}, {what}"
            raise TypeError(
                f"{subject}: the mark {mark.name} would skip a check of the kit in silence; "
                "waived = {'test_…': 'the reason'} does it in words"
            )
