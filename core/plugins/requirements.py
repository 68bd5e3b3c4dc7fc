"""Version ranges, read from metadata before anything is imported."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def refusal(distribution: metadata.Distribution, sdk_version: str) -> str | None:
    """Why the distribution's own ``Requires-Dist: bestiary…`` does not admit this bestiary; None where it does.

    Ranges behind an extra (``bestiary[testing]; extra == 'test'``) say nothing about loading and are left out.
    """
    for line in distribution.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            if line.strip().startswith("bestiary"):
                return f"its metadata has an unreadable requirement {line!r}"
            continue
        if canonicalize_name(requirement.name) != "bestiary" or not _applies(requirement):
            continue
        if not requirement.specifier.contains(sdk_version, prereleases=True):
            return f"it requires bestiary {requirement.specifier}, this is bestiary {sdk_version}"
    return None


def api_range(distribution: metadata.Distribution) -> str:
    """The range of bestiary that a distribution asks for, the lower bound first: ``>=0.1,<0.2``; empty where it asks for none."""
    ranges = []
    for line in distribution.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) == "bestiary" and _applies(requirement):
            ranges += [str(one) for one in requirement.specifier]
    return ",".join(sorted(ranges, key=lambda one: (one.startswith(("<", "!")), one)))


def unmet(requirement: str) -> str | None:
    """Why ``"triton>=3.6"`` isn't met by what is installed, as a clause; None where it is, or where nothing is asked.

    >>> unmet("no-such-distribution>=1")
    'no-such-distribution is not installed'
    """
    if not requirement:
        return None
    wanted = Requirement(requirement)
    if not _applies(wanted):
        return None
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed"
    if wanted.specifier.contains(found, prereleases=True):
        return None
    return f"{wanted.name} {found} is installed, {wanted.specifier} is needed"


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
