"""What a change may do to the public contract once a version of it is out.

A *contract* is the text that ``tests/torch/test_public_api.py`` prints: public names with their signatures, a module after
the other. Additions must not break callers, and are named in the changelog. What goes was deprecated two minor versions
before, by an entry ``Deprecated: `name`; use `other` ``; until it goes, its use warns and names the other. A parameter is deprecated as ``module.function.parameter``.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from inspect import getattr_static, getsource, isclass, signature, unwrap
from textwrap import dedent
from typing import Any, NamedTuple

#: Minor versions between a deprecation and a removal.
NOTICE = 2

_DEPRECATED = re.compile(r"Deprecated: `(?P<name>[\w.]+)`; use `(?P<other>[^`]+)`")
_VERSION = re.compile(r"^## (\d+)\.(\d+)\.\d+", re.MULTILINE)

Version = tuple[int, int]


class Described(NamedTuple):
    """What the contract says of a name: its function, or else its kind with the bases of a class or the type of a value."""

    function: ast.FunctionDef | None = None
    kind: str = ""


Signatures = Mapping[str, Described]


class Deprecation(NamedTuple):
    """An entry of the changelog: since ``version``, ``other`` is to be used instead."""

    version: Version
    other: str


def breaks(old: str, new: str, changelog: str, version: Version) -> list[str]:
    """What in the contract ``new`` of ``version`` is against the rules for users of the released contract ``old``."""
    before, now, deprecated = signatures(old), signatures(new), deprecations(changelog)
    told = entries(changelog_since(changelog, lowest=version))
    found = []
    for name in before.keys() - now.keys():
        if name.rpartition(".")[0] not in before.keys() - now.keys():  # else it goes with its class
            found += _gone(name, deprecated, version)
    for name in before.keys() & now.keys():
        for problem, parameter in incompatible(before[name], now[name]):
            if parameter is None or _gone(f"{name}.{parameter}", deprecated, version):
                found.append(f"{name}: {problem}")
        added = _parameters(now[name]) - _parameters(before[name])
        found += [
            f"{name}: its parameter {one} is new, and the changelog does not name it"
            for one in sorted(added)
            if not any({_short(name), one} <= entry for entry in told)
        ]
    added_names = now.keys() - before.keys()
    for name in added_names:
        owner, _, own = name.replace(":", ".").rpartition(".")
        wanted = {own, _short(owner)} if owner in before else {own}
        if owner not in added_names and not any(wanted <= entry for entry in told):  # else it comes with its class
            found.append(f"{name} is new, and the changelog does not name it")
    return sorted(found)


def entries(changelog: str) -> list[set[str]]:
    """For each entry what it names: the words of its code that is a name, or a call such as ``LLM(device=…)``."""
    found = []
    for entry in re.split(r"^- ", changelog, flags=re.MULTILINE):
        codes = (code for code in re.findall(r"`([^`]+)`", entry) if re.fullmatch(r"[\w.:]+(\(.*\))?", code))
        found.append({word for code in codes for word in re.findall(r"\w+", code)})
    return found


def _short(function: str) -> str:
    """What a function is called in text: ``LLM`` for ``bestiary.LLM.__init__``."""
    return function.removesuffix(".__init__").rpartition(".")[2]


def _gone(name: str, deprecated: Mapping[str, Deprecation], version: Version) -> list[str]:
    """Why a name may not go yet; empty where it may."""
    since = deprecated.get(name)
    if since is None:
        return [f"{name} is gone, and the changelog never deprecated it"]
    passed = version[1] - since.version[1]
    if since.version[0] == version[0] and passed < NOTICE:
        return [f"{name} is gone {passed} minor versions after its deprecation, not {NOTICE}"]
    return []


def signatures(contract: str) -> Signatures:
    """Qualified names → what is said of them."""
    found: dict[str, Described] = {}
    module = owner = ""
    for line in contract.splitlines():
        if line.startswith("# "):
            module = line[2:]
        elif match := re.match(r"class (\w+)(.*)", line):
            owner = f"{module}.{match[1]}"
            found[owner] = Described(kind=f"class{match[2]}")
        elif match := re.match(r"    attribute ([\w.]+)", line):
            found[f"{owner}:{match[1]}"] = Described(kind="attribute")
        elif match := re.match(r"    (\w+)(\(.*)", line):
            found[f"{owner}.__init__"] = _function(match[2])
        elif match := re.match(r"(    )?(?:def|classmethod|staticmethod) (\w+)(\(.*)", line):
            found[f"{owner if match[1] else module}.{match[2]}"] = _function(match[3])
        elif match := re.match(r"(    )?(?:property )?(\w+)(.*)", line):
            found[f"{owner if match[1] else module}.{match[2]}"] = Described(kind=f"value{match[3]}")
    return found


def _function(signature: str) -> Described:
    if signature.startswith("(…)"):
        return Described(kind="made by the SDK")
    parsable = re.sub(r"<[^<>]*>", "...", signature)  # defaults such as <factory> and <function f>
    (function,) = ast.parse(f"def f{parsable}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return Described(function)


def incompatible(old: Described, new: Described) -> Iterator[tuple[str, str | None]]:
    """Why calls that were right are wrong now; with the parameter where one is gone."""
    if old.function is None or new.function is None:
        if (old.function is None) != (new.function is None) or not _fits(old.kind, new.kind):
            yield f"it was {old.kind or 'a function'} and is {new.kind or 'a function'}", None
        return
    before, now = old.function.args, new.function.args
    positional, keyword = _positional(before), {one.arg for one in before.kwonlyargs}
    places = _positional(now)
    for gone in sorted(_parameters(old) - _parameters(new)):
        if now.kwarg is None:
            yield f"its parameter {gone} is gone", gone
    kept = [name for name in positional if name in _parameters(new)]
    if places[: len(kept)] != kept:
        yield f"its positional parameters were ({', '.join(positional)}) and are ({', '.join(places)})", None
    if named := {one.arg for one in now.posonlyargs} & (
        {*positional} - {one.arg for one in before.posonlyargs} | keyword
    ):
        yield f"its parameters {', '.join(sorted(named))} can be given by name no more", None
    if required := _required(now) - _required(before):
        yield f"its parameters {', '.join(sorted(required))} have no default", None
    if (before.vararg and not now.vararg) or (before.kwarg and not now.kwarg):
        yield "it takes no further arguments any more", None
    yield from ((problem, None) for problem in _retyped(old.function, new.function))


def _fits(old: str, new: str) -> bool:
    """Whether a class still has its bases, or a value its type."""
    if not old.startswith("class("):
        return old == new
    return {*old[6:-1].split(", ")} <= {*new[6:-1].split(", ")}


def _retyped(old: ast.FunctionDef, new: ast.FunctionDef) -> Iterator[str]:
    """Other defaults, another result, and parameters that take less than they did."""
    types, defaults = _types(old), _defaults(old.args)
    for name, default in _defaults(new.args).items():
        if name in defaults and defaults[name] != default:
            yield f"the default of {name} was {defaults[name]} and is {default}"
    for name, parts in _types(new).items():
        if name in types and not types[name] <= parts:
            yield f"{name} takes {' | '.join(sorted(parts))} and no more {' | '.join(sorted(types[name] - parts))}"
    result, now = (one.returns and ast.unparse(one.returns) for one in (old, new))
    if result != now:
        yield f"it returned {result} and returns {now}"


def _types(function: ast.FunctionDef) -> dict[str, set[str]]:
    """The alternatives of each parameter's annotation."""
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return {
        one.arg: {part.strip() for part in ast.unparse(one.annotation).split(" | ")}
        for one in arguments
        if one.annotation
    }


def _defaults(arguments: ast.arguments) -> dict[str, str]:
    names = _positional(arguments)
    given = dict(zip(names[len(names) - len(arguments.defaults) :], arguments.defaults, strict=True))
    named = {one.arg: value for one, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value}
    return {name: ast.unparse(value) for name, value in (given | named).items()}


def _parameters(described: Described) -> set[str]:
    if described.function is None:
        return set()
    arguments = described.function.args
    return {*_positional(arguments), *(one.arg for one in arguments.kwonlyargs)}


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
    """Deprecated names that are still there and whose use does not warn with the name of what to use instead.

    A module's name is fetched. Of a member or a parameter the code is read: the function that is deprecated or has the
    parameter must hold a ``warnings.warn(…, DeprecationWarning)`` with a text that names the other (and the parameter).
    """
    by_name = {module.__name__: module for module in modules}
    found = []
    for name, (_, other) in deprecations(changelog).items():
        module = next((by_name[m] for m in sorted(by_name, key=len, reverse=True) if name.startswith(f"{m}.")), None)
        if module is None:
            found.append(f"{name} is deprecated, and is no name of a public module")
            continue
        parts = name.removeprefix(f"{module.__name__}.").split(".")
        warned = _fetched(module, parts[0], other) if len(parts) == 1 else _read(module, parts, other)
        if not warned:
            found.append(f"{name} is deprecated, and its use gives no DeprecationWarning that names {other}")
    return found


def _fetched(module: Any, attribute: str, other: str) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        present = hasattr(module, attribute)
    said = [str(one.message) for one in caught if issubclass(one.category, DeprecationWarning)]
    return not present or any(other in text for text in said)


def _read(module: Any, parts: Sequence[str], other: str) -> bool:
    """Whether the code of a member, or of a function with the parameter, warns; or none of it is there any more."""
    owner: Any = module
    for part in parts[:-1]:
        owner = getattr_static(owner, part, None)
        if owner is None:
            return True
    last, member = parts[-1], getattr_static(owner, parts[-1], None) if isclass(owner) else None
    if member is not None:
        return _warns(member, (other,))
    function = getattr_static(owner, "__init__") if isclass(owner) else owner
    function = getattr(function, "reference", function)  # of an op
    if isclass(owner) and last in getattr(owner, "__annotations__", {}):  # a field without a default
        return _warns(function, (last, other))
    return last not in signature(function).parameters or _warns(function, (last, other))


def _warns(member: Any, words: Sequence[str]) -> bool:
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    try:
        tree = ast.parse(dedent(getsource(unwrap(function))))
    except (OSError, TypeError):
        return False
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    said = (ast.unparse(call) for call in calls if ast.unparse(call.func) in ("warnings.warn", "warn"))
    return any("DeprecationWarning" in text and all(word in text for word in words) for text in said)
