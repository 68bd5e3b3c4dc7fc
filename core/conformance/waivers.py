"""Checks that a plugin's author is not held to: each has its reason in writing, and none is dropped without one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_SHORTEST = 12  # characters of a reason
#: Names through which pytest, or a class with a mind of its own, would lose checks.
PYTEST = (
    "setup_class", "setup_method", "teardown_class", "teardown_method", "__test__", "__init__", "__new__",
    "__getattribute__", "__getattr__",
)  # fmt: skip
_SKIPPING = ("skip", "skipif", "xfail")


class Sealed(type):
    """A class of checks that stays as it was made: a check that is replaced afterwards (TypeError) would be lost unseen."""

    def __setattr__(cls, name: str, value: Any) -> None:
        # pytest keeps marks in pytestmark, and its own bookkeeping under names of its own.
        if name != "pytestmark" and not name.startswith(("__pytest", "_pytest", "__abstract")):
            raise TypeError(f"{cls.__name__}.{name}: a class of the conformance kit is not changed after it is made")
        super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        raise TypeError(f"{cls.__name__}.{name}: a class of the conformance kit is not changed after it is made")


def refuse_silent(
    cls: type, kit: type, settings: Collection[str], waived: Mapping[str, str], names: Collection[str]
) -> None:
    """Refuse a subclass of a kit that drops a check and does not say why. A kit calls it in ``__init_subclass__``.

    Args:
        kit: the class whose ``test_…`` methods are the checks; a subclass that overrides one needs a waiver of its name.
        settings: the members of the kit that a subclass may set.
        waived: check → reason, as the subclass states them.
        names: what may be waived besides the kit's own methods.

    Raises:
        TypeError: a check is overridden without a waiver, another part of the kit is overridden, a waiver has no reason,
            or it names no check.
    """
    if type(cls) is not type(kit):
        raise TypeError(f"{cls.__name__}: its metaclass {type(cls).__name__} could change what the kit sees of it")
    tests = {name for name in vars(kit) if name.startswith("test_")}
    fixed = {name for name in vars(kit) if not name.startswith("__")} - tests - set(settings)
    place = cls.__mro__.index(kit)
    below = [name for one in cls.__mro__[:place] for name in vars(one)]
    below += [name for one in cls.__mro__[place + 1 : -1] for name in vars(one) if name in PYTEST]
    for name in below:
        if name in fixed or name in PYTEST:
            raise TypeError(f"{cls.__name__}.{name}: belongs to {kit.__name__} or pytest, and would change its checks")
        if name in tests and name not in waived:
            raise overridden(cls.__name__, name)
    check_waivers(cls, waived, known=[*sorted(tests), *sorted(names)], shown=sorted({*names, *tests}))


def check_waivers(cls: type, waived: Mapping[str, str], known: Collection[str], shown: Collection[str]) -> None:
    """Refuse a waiver that names no check, or whose reason is none (TypeError).

    Args:
        known: what may be waived.
        shown: what an error says there is.
    """
    for name, reason in waived.items():
        if name not in known:
            raise TypeError(f"{cls.__name__}.waived: there is no check {name!r}; the checks are {', '.join(shown)}")
        if not isinstance(reason, str) or len(reason.split()) < 2 or len(reason.strip()) < _SHORTEST:
            raise TypeError(f"{cls.__name__}.waived: {name} needs a reason in words, and has {reason!r}")


def overridden(owner: str, check: str) -> TypeError:
    """What is raised where a check is overridden and not waived."""
    return TypeError(
        f"{owner}.{check}: a check is overridden without a written reason; waived = {{{check!r}: 'the reason'}} gives one"
    )


def refuse_marks(cls: type, marks: Any, item: str | None = None) -> None:
    """Refuse a pytest mark that would skip a kit's check, wherever it was put (TypeError).

    Args:
        marks: one, or several.
        item: the test that has them; None for the class itself.
    """
    for mark in marks if isinstance(marks, list | tuple) else [marks]:
        if getattr(mark, "name", None) in _SKIPPING:
            subject = cls.__name__ if item is None else f"{cls.__name__}, {item}"
            raise TypeError(
                f"{subject}: the mark {mark.name} would skip a check in silence; "
                "waived = {'check': 'the reason'} does it in words"
            )
