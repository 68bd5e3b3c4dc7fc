"""What a change may do to the public contract once a version of it is out.

A *contract* is the text that ``tests/torch/test_public_api.py`` prints: public names with their signatures, a module after
the other. Additions must not break callers, and are named in the changelog. What goes was deprecated two minor versions
before, by an entry ``Deprecated: `name`; use `other` ``; until it goes, its use warns and names the other.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

#: Minor versions between a deprecation and a removal.
NOTICE = 2

_DEPRECATED = re.compile(r"Deprecated: `(?P<name>[\w.]+)`; use `(?P<other>[^`]+)`")
_VERSION = re.compile(r"^## (\d+)\.(\d+)\.\d+", re.MULTILINE)

Version = tuple[int, int]
Signatures = Mapping[str, "ast.arguments | None"]


class Deprecation(NamedTuple):
    """An entry of the changelog: since ``version``, ``other`` is to be used instead."""

    version: Version
    other: str


def breaks(old: str, new: str, changelog: str, version: Version) -> list[str]:
    """What in the contract ``new`` of ``version`` is against the rules for users of the released contract ``old``."""
    before, now, deprecated = signatures(old), signatures(new), deprecations(changelog)
    found = []
    for name in before.keys() - now.keys():
        if name.rpartition(".")[0] in before.keys() - now.keys():
            continue  # goes with its class
        since = deprecated.get(name)
        if since is None:
            found.append(f"{name} is gone, and the changelog never deprecated it")
        elif since.version[0] == version[0] and version[1] - since.version[1] < NOTICE:
            found.append(
                f"{name} is gone {version[1] - since.version[1]} minor versions after its deprecation, not {NOTICE}"
            )
    for name in before.keys() & now.keys():
        found += [f"{name}: {problem}" for problem in incompatible(before[name], now[name])]
    entries = changelog_since(changelog, lowest=version)
    for name in now.keys() - before.keys():
        if name.rpartition(".")[2] not in entries:
            found.append(f"{name} is new, and the changelog does not name it")
    return sorted(found)


def signatures(contract: str) -> Signatures:
    """Qualified names → their parameters; None for what is not called."""
    found: dict[str, ast.arguments | None] = {}
    module = owner = ""
    for line in contract.splitlines():
        if line.startswith("# "):
            module = line[2:]
        elif match := re.match(r"class (\w+)", line):
            owner = f"{module}.{match[1]}"
            found[owner] = None
        elif match := re.match(r"    (\w+)(\(.*)", line):
            found[f"{owner}.__init__"] = _arguments(match[2])
        elif match := re.match(r"(    )?(?:def|classmethod|staticmethod) (\w+)(\(.*)", line):
            found[f"{owner if match[1] else module}.{match[2]}"] = _arguments(match[3])
        elif match := re.match(r"(    )?(?:property )?(\w+)", line):
            found[f"{owner if match[1] else module}.{match[2]}"] = None
    return found


def _arguments(signature: str) -> ast.arguments | None:
    if signature.startswith("(…)"):
        return None
    parsable = re.sub(r"<[^<>]*>", "...", signature)  # defaults such as <factory> and <function f>
    (function,) = ast.parse(f"def f{parsable}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return function.args


def incompatible(old: ast.arguments | None, new: ast.arguments | None) -> Iterator[str]:
    """Why calls that were right are wrong now."""
    if old is None or new is None:
        if (old is None) != (new is None):
            yield "it can be called no more" if new is None else "it is a function now"
        return
    positional, keyword = _positional(old), {one.arg for one in old.kwonlyargs}
    now, now_keyword = _positional(new), {one.arg for one in new.kwonlyargs}
    if now[: len(positional)] != positional:
        yield f"its positional parameters were ({', '.join(positional)}) and are ({', '.join(now)})"
    gone = keyword - now_keyword - set(now)
    if gone and new.kwarg is None:
        yield f"its parameters {', '.join(sorted(gone))} are gone"
    required = _required(new) - _required(old)
    if required:
        yield f"its parameters {', '.join(sorted(required))} have no default"
    if (old.vararg and not new.vararg) or (old.kwarg and not new.kwarg):
        yield "it takes no further arguments any more"


def _positional(arguments: ast.arguments) -> list[str]:
    return [one.arg for one in (*arguments.posonlyargs, *arguments.args)]


def _required(arguments: ast.arguments) -> set[str]:
    names = _positional(arguments)
    named = {
        one.arg for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    }
    return set(names[: len(names) - len(arguments.defaults)]) | named


def deprecations(changelog: str) -> dict[str, Deprecation]:
    """Deprecated names → since when, and what to use."""
    return {
        match["name"]: Deprecation(version, match["other"])
        for version, text in sections(changelog)
        for match in _DEPRECATED.finditer(text)
    }


def sections(changelog: str) -> list[tuple[Version, str]]:
    """The changelog's versions, newest first, each with its text."""
    parts = _VERSION.split(changelog)[1:]
    return [((int(a), int(b)), text) for a, b, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]


def changelog_since(changelog: str, lowest: Version) -> str:
    """The entries of ``lowest`` and newer."""
    return "\n".join(text for version, text in sections(changelog) if version >= lowest)


def silent(changelog: str, modules: Sequence[Any]) -> list[str]:
    """Deprecated names that are still there and whose use does not warn with the name of what to use instead."""
    by_name = {module.__name__: module for module in modules}
    found = []
    for name, (_, other) in deprecations(changelog).items():
        owner, _, attribute = name.rpartition(".")
        if owner not in by_name:
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            present = hasattr(by_name[owner], attribute)
        said = [str(one.message) for one in caught if issubclass(one.category, DeprecationWarning)]
        if present and not any(other in text for text in said):
            found.append(f"{name} is deprecated, and its use gives no DeprecationWarning that names {other}")
    return found
