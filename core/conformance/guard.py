"""What a kit's checks are held to while pytest runs: that they are the kit's own, that they measured something, and that
nobody dropped or skipped one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from inspect import getattr_static, isfunction
from types import MappingProxyType
from typing import Any, NoReturn

import pytest

#: What the kit's own fixtures gave to a check, by the fixture's name.
GIVEN = pytest.StashKey[dict[str, Any]]()
#: Set where the kit itself skips a check that is waived.
_EXCUSED = pytest.StashKey[bool]()
_PACKAGE = "bestiary.core.conformance."


def give(item: Any, name: str, value: Any) -> None:
    """Note what a fixture of the kit gives to a check."""
    item.stash.setdefault(GIVEN, {})[name] = value


def excuse(item: Any, reason: str) -> NoReturn:
    """Skip a check, from a fixture of the kit."""
    item.stash[_EXCUSED] = True
    pytest.skip(reason)


class Guard:
    """A pytest plugin that fails a kit's check unless the kit's own code ran it.

    Whatever a subclass or a mixin does while it is made is refused there; fixtures act later, and are seen here.

    Args:
        kit: the class whose ``test_…`` methods are the checks.
        fixtures: its fixtures, whose values must reach the checks as they are.
        proof: how much the check has looked at so far; None for checks that leave no trace.
        parts: of the kit's code, as :func:`parts` found them when it was imported.
        optional: the checks that may skip themselves.
    """

    def __init__(
        self,
        kit: type,
        fixtures: tuple[str, ...],
        proof: Callable[[Any], int | None],
        parts: Mapping[tuple[str, str], Any],
        optional: Collection[str],
    ) -> None:
        self._kit, self._fixtures, self._proof, self._parts = kit, fixtures, proof, parts
        self._optional = optional
        self._collected: dict[str, Any] = {}
        self._deselected: set[str] = set()
        #: Node ids of the checks that the kit's code ran to their end.
        self.concluded: set[str] = set()

    @property
    def name(self) -> str:
        """Under which pytest knows it."""
        return f"bestiary-{self._kit.__name__}"

    def register(self, config: pytest.Config) -> None:
        """Watch this run of pytest, once."""
        if not config.pluginmanager.has_plugin(self.name):
            config.pluginmanager.register(self, self.name)

    def pytest_itemcollected(self, item: Any) -> None:
        if self._concerns(item):
            self._collected[item.nodeid] = item

    def pytest_deselected(self, items: Sequence[Any]) -> None:
        """What -k, -m and others leave out in the open: pytest counts it."""
        self._deselected.update(item.nodeid for item in items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Refuse to run where somebody took checks away and did not say so (UsageError)."""
        kept = {item.nodeid for item in session.items}
        lost = [nodeid for nodeid in self._collected if nodeid not in kept and nodeid not in self._deselected]
        if lost:
            raise pytest.UsageError(
                f"{len(lost)} of {len(self._collected)} checks of {self._kit.__name__} were dropped after they were "
                f"collected, by a conftest.py or a plugin of pytest: {', '.join(lost[:3])}{', …' if lost[3:] else ''}"
            )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: Any) -> Generator[None, Any, Any]:
        """A check that somebody else skips, or expects to fail, failed."""
        report = yield
        if not report.skipped or not self._concerns(item) or item.stash.get(_EXCUSED, False):
            return report
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
        reason = str(said).removeprefix("Skipped: ")
        own = report.when == "call" or reason.startswith(
            "got empty parameter set"
        )  # pytest's own, of a plugin without ops
        if not (own and item.originalname in self._optional):
            report.outcome, report.longrepr = "failed", f"skipped without a waiver: {reason}"
            vars(report).pop("wasxfail", None)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: Any) -> Generator[None, Any, Any]:
        """Around a check, after its fixtures."""
        if not self._concerns(item):
            return (yield)
        if (problem := self._replaced(item)) is not None:
            pytest.fail(f"{item.originalname}: {problem}", pytrace=False)
        before = self._proof(item)
        result = yield
        after = self._proof(item)
        if before is not None and (after is None or after <= before):
            pytest.fail(f"{item.originalname}: it measured nothing", pytrace=False)
        self.concluded.add(item.nodeid)
        return result

    def _concerns(self, item: Any) -> bool:
        """Whether the item is a check of the kit; one that is waived may be another's."""
        cls, name = getattr(item, "cls", None), str(getattr(item, "originalname", ""))
        if cls is None or not issubclass(cls, self._kit) or name not in vars(self._kit):
            return False
        return getattr_static(cls, name) is vars(self._kit)[name] or name not in cls.waived

    def _replaced(self, item: Any) -> str | None:
        """What is not as the kit has it, in words."""
        if getattr(item.obj, "__func__", None) is not vars(self._kit)[item.originalname] or "runtest" in vars(item):
            return "something replaced the check while it was set up"
        given = item.stash.get(GIVEN, {})
        for name in self._fixtures:
            if name not in item.fixturenames:
                continue
            if name not in given or item.funcargs.get(name, given[name]) is not given[name]:
                return f"a fixture of its own replaces the kit's {name!r}"
            if shadowed := _shadowed(given[name]):
                return f"something replaced {name}.{shadowed} while it was set up"
        changed = next((place for place, part in self._parts.items() if _part(place) is not part), None)
        return None if changed is None else f"something replaced {'.'.join(changed)} of the kit while it was set up"


def parts() -> Mapping[tuple[str, str], Any]:
    """The names of the kit's modules that are imported, and the methods of its classes, with what they stand for."""
    found: dict[tuple[str, str], Any] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(_PACKAGE):
            found |= {(name, place): part for place, part in _within(name, module)}
    return MappingProxyType(found)


def _within(name: str, module: Any) -> Iterator[tuple[str, Any]]:
    for member, value in vars(module).items():
        if member.startswith("__"):
            continue
        yield member, value
        if isinstance(value, type) and value.__module__ == name:
            yield from ((f"{member}.{own}", part) for own, part in vars(value).items() if isfunction(part))


def _part(place: tuple[str, str]) -> Any:
    module, (member, *rest) = sys.modules.get(place[0]), place[1].split(".")
    found = vars(module).get(member) if module else None
    return getattr_static(found, rest[0], None) if rest else found


def _shadowed(given: Any) -> str | None:
    """A method that the object has of its own in place of its class's."""
    own = getattr(given, "__dict__", {})
    return next((name for name in own if callable(getattr_static(type(given), name, None))), None)
