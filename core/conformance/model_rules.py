"""No check of the kit can be skipped in silence: what a class may set, and what it may not touch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from inspect import getattr_static
from types import MappingProxyType
from typing import Any

from bestiary.core.conformance.waivers import PYTEST, Sealed, check_waivers, overridden, refuse_marks

#: What a plugin's class sets.
SETTINGS = ("model", "configs", "reference", "waived", "plugins", "prefer")
# What is said where the class is that 'bestiary check' runs, and not below it.
_SAID_ONCE = ("model", "configs", "reference", "waived")


class Guarded(Sealed):
    """A class of checks that refuses to lose one, when it is made and afterwards.

    Raises:
        TypeError: a check or a part of the kit is overridden, a setting is missing, empty or changed, a waiver has no
            reason or names no check, or a mark skips.
    """

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Guarded:
        cls = super().__new__(mcs, name, bases, body)
        if _kit_of(cls) is not cls:
            check_class(cls)
            if not _parents(cls):
                for setting in ("configs", "waived"):
                    type.__setattr__(cls, setting, _frozen(getattr(cls, setting)))
        return cls

    def __setattr__(cls, name: str, value: Any) -> None:
        if name == "pytestmark":
            refuse_marks(cls, value)
        super().__setattr__(name, value)


def checks_of(cls: type) -> tuple[str, ...]:
    """The kit's checks, in order."""
    return tuple(name for name in vars(_kit_of(cls)) if name.startswith("test_"))


def check_class(cls: Any) -> None:
    """Refuse a class that lost a check, in its own body or by what it inherits (TypeError).

    It holds when the class is made and again before its checks run: a mixin can change in between.
    """
    kit = _kit_of(cls)
    if type(cls) is not Guarded:
        raise TypeError(f"{cls.__name__}: its metaclass {type(cls).__name__} could change what the kit sees of it")
    _check_settings(cls)
    before = cls.__mro__.index(kit)
    for place, base in enumerate(cls.__mro__[:-1]):
        for member, value in vars(base).items():
            # What comes after the kit shadows nothing of it, but pytest finds it where the kit has nothing.
            if base is not kit and (place < before or member in (*PYTEST, "pytestmark")):
                _check_member(cls, base, kit, member, value)


def waiver(cls: Any, check: str, config: str) -> str | None:
    """The reason why a check is waived for a config, if it is."""
    reason: str | None = cls.waived.get(check) or cls.waived.get(f"{check}[{config}]")
    return reason


def _kit_of(cls: type) -> type:
    return next((base for base in reversed(cls.__mro__) if isinstance(base, Guarded)), cls)


def _parents(cls: type) -> Sequence[type]:
    """The classes of checks between the kit and this one, the nearest to the kit first."""
    return [base for base in reversed(cls.__mro__[1:]) if isinstance(base, Guarded)][1:]


def _frozen(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy that loses and gains no name; a mapping in it likewise, whose values are copies."""
    copy = {
        key: MappingProxyType(deepcopy(dict(one))) if isinstance(one, Mapping) else one for key, one in said.items()
    }
    return MappingProxyType(copy)


def _check_settings(cls: Any) -> None:
    name = cls.__name__
    for setting in _SAID_ONCE:
        for owner in _parents(cls):
            if getattr_static(cls, setting) is not getattr_static(owner, setting):
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
    check_waivers(cls, cls.waived, known=set(_waivable(cls)), shown=checks_of(cls))


def _waivable(cls: Any) -> Iterator[str]:
    for check in checks_of(cls):
        yield check
        yield from (f"{check}[{config}]" for config in cls.configs)


def _check_member(cls: Any, base: type, kit: type, member: str, value: Any) -> None:
    name = cls.__name__ if base is cls else f"{cls.__name__}, from {base.__name__}"
    if member in checks_of(cls):
        if member not in cls.waived:
            raise overridden(name, member)
        if not callable(value):
            raise TypeError(f"{name}.{member}: is no function; a waived check needs no replacement")
    elif member == "pytestmark":
        refuse_marks(cls, value)
    elif member in PYTEST or (member in vars(kit) and member not in SETTINGS and not member.startswith("__")):
        raise TypeError(f"{name}.{member}: belongs to the conformance kit or to pytest, and would change its checks")
