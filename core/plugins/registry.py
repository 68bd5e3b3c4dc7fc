"""Names and who claims them. A name that two plugins claim can't be used until ``prefer`` gives it to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packaging.utils import canonicalize_name

from bestiary.core.errors import PluginError, UsageError
from bestiary.core.plugins.kinds import BY_TYPE, KINDS
from bestiary.core.plugins.loading import Staged
from bestiary.core.plugins.records import Conflict, Origin


class Registry:
    """Descriptors by kind and by claimed name.

    Args:
        prefer: name → distribution (or plugin) that has it, where several claim it.
    """

    def __init__(self, prefer: Mapping[str, str]) -> None:
        self.prefer = dict(prefer)
        self._descriptors: dict[type, list[Any]] = {kind.type: [] for kind in KINDS}
        self._claims: dict[tuple[str, str], list[Any]] = {}
        self._origins: dict[int, Origin] = {}

    def commit(self, origin: Origin, staged: Staged) -> dict[str, tuple[str, ...]]:
        """Take over everything a plugin staged; gives the names by kind."""
        provides: dict[str, tuple[str, ...]] = {}
        for kind, descriptor in staged:
            self._descriptors[kind.type].append(descriptor)
            self._origins[id(descriptor)] = origin
            for what, name in kind.claims(descriptor):
                self._claims.setdefault((what, name), []).append(descriptor)
                provides[what] = (*provides.get(what, ()), name)
        return provides

    def origin(self, descriptor: object) -> Origin:
        """Who registered this descriptor."""
        if (origin := self._origins.get(id(descriptor))) is not None:
            return origin
        for known in self._descriptors.get(type(descriptor), ()):
            if known == descriptor:
                return self._origins[id(known)]
        raise PluginError("E-PLG-UNKNOWN", repr(descriptor)[:120], "is not registered with this plugin host")

    def find(self, what: str, name: str) -> Any | None:
        """The descriptor that has the name, None where nobody claims it.

        Raises:
            PluginError: several plugins claim it and nothing prefers one.
        """
        claimants = self._claims.get((what, name), [])
        if len(claimants) <= 1:
            return claimants[0] if claimants else None
        if (chosen := self._chosen(name, claimants)) is not None:
            return chosen
        raise clash(what, name, tuple(self._origins[id(one)] for one in claimants))

    def all(self, kind: type, *, strict: bool) -> tuple[Any, ...]:
        """Every usable descriptor of a kind, in order of registration.

        Args:
            strict: raise where a name is claimed twice and nothing decides; else those claims are left out.
        """
        return tuple(one for one in self._descriptors[kind] if self._usable(one, strict))

    def names(self, what: str) -> tuple[str, ...]:
        """All claimed names of a kind of name, sorted."""
        return tuple(sorted(name for kind, name in self._claims if kind == what))

    def conflicts(self) -> tuple[Conflict, ...]:
        """All names with several claimants."""
        found = []
        for (what, name), claimants in sorted(self._claims.items(), key=lambda item: item[0]):
            if len(claimants) > 1:
                chosen = self._chosen(name, claimants)
                decided = self._origins[id(chosen)].distribution if chosen is not None else None
                found.append(Conflict(what, name, tuple(self._origins[id(one)] for one in claimants), decided))
        return tuple(found)

    def check_preferences(self, prefer: Mapping[str, str], plugins: Sequence[Origin]) -> None:
        """Raises UsageError for a preference that decides nothing: nobody has the name, or not from there.

        Args:
            plugins: all that are installed; a name may also be a plugin's own.
        """
        for name, distribution in prefer.items():
            claimants = [one for (_, known), ones in self._claims.items() if known == name for one in ones]
            origins = [self._origins[id(one)] for one in claimants] + [one for one in plugins if one.plugin == name]
            subject = f"--prefer {name}={distribution}"
            if not origins:
                raise UsageError("E-PLG-PREFER", subject, f"no loaded plugin claims the name {name!r}")
            if not any(matches(distribution, one) for one in origins):
                known = " or ".join(sorted({one.distribution for one in origins}))
                raise UsageError("E-PLG-PREFER", subject, "that distribution does not claim it", expected=known)

    def _usable(self, descriptor: Any, strict: bool) -> bool:
        for what, name in BY_TYPE[type(descriptor)].claims(descriptor):
            claimants = self._claims[what, name]
            # A model family is usable as long as one of its names leads to it.
            if len(claimants) == 1 or self._chosen(name, claimants) is descriptor:
                return True
            if strict:
                raise clash(what, name, tuple(self._origins[id(one)] for one in claimants))
        return False

    def _chosen(self, name: str, claimants: list[Any]) -> Any | None:
        if (wanted := self.prefer.get(name)) is None:
            return None
        return next((one for one in claimants if matches(wanted, self._origins[id(one)])), None)


def matches(wanted: str, origin: Origin) -> bool:
    """Whether ``wanted`` names this origin, by distribution or by plugin."""
    return canonicalize_name(wanted) == canonicalize_name(origin.distribution) or wanted == origin.plugin


def clash(what: str, name: str, claimants: tuple[Origin, ...]) -> PluginError:
    """The error for a name with several claimants: names all of them and says how to decide."""
    distributions = [origin.distribution for origin in claimants]
    shown = distributions if len(set(distributions)) > 1 else [origin.plugin for origin in claimants]
    both = " and ".join(f"{one} {origin.version}" for one, origin in zip(shown, claimants, strict=True))
    hint = f"decide with --prefer {name}={shown[0]}, or uninstall one of them"
    return PluginError("E-PLG-CONFLICT", f"{what} {name!r}", f"is claimed by {both}", hint=hint)
