"""``"int4:group=64, lm_head=int8, *.down=none"``: which method each module gets. No torch."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from bestiary.core.errors import ConfigError, shown

#: The method of modules that stay as they are.
NONE: Final = "none"
_SHOWN = 8


@dataclass(frozen=True)
class Rule:
    """A method with its options as written, for the modules whose name ``pattern`` matches; None: all that are quantized by default."""

    pattern: str | None
    method: str
    options: tuple[tuple[str, str], ...]

    def matches(self, names: Iterable[str], *, default: bool) -> bool:
        """Whether a module of these names, or a module that it lies in, is meant."""
        if self.pattern is None:
            return default
        return any(fnmatch.fnmatchcase(part, self.pattern) for name in names for part in _ends(name))


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Rules from their text: ``method[:option=value…]``, or the same after ``pattern=``, separated by commas.

    Raises:
        ConfigError: it is no text, a rule is empty, or an option has no value.
    """
    if not isinstance(text, str):
        raise ConfigError(
            "E-BUILD-QUANTIZATION", "quantization", "of the wrong type", found=shown(text), expected="rules, as a text"
        )
    rules = tuple(_rule(part.strip(), text) for part in text.split(","))
    patterns = [rule.pattern for rule in rules]
    for pattern in patterns:
        if patterns.count(pattern) > 1:
            what = "a method for all modules" if pattern is None else f"{pattern}="
            raise _wrong(text, f"{what} is there twice", "one rule for each pattern")
    return rules


def _rule(part: str, text: str) -> Rule:
    head, *options = (piece.strip() for piece in part.split(":"))
    pattern, equals, method = (piece.strip() for piece in head.rpartition("="))
    if not method or (equals and not pattern):
        raise _wrong(
            text, f"rule {part!r} names no {'method' if pattern or not equals else 'module'}", "method or module=method"
        )
    pairs = {}
    for option in options:
        name, _, value = (piece.strip() for piece in option.partition("="))
        if not name or not value:
            raise _wrong(text, f"option {option!r} of {method} has no value", "name=value")
        if name in pairs:
            raise _wrong(text, f"option {name} of {method} is there twice", "each option once")
        pairs[name] = value
    return Rule(pattern if equals else None, method, tuple(pairs.items()))


def choose(
    rules: Iterable[Rule], modules: Mapping[str, Iterable[str]], default: frozenset[str], text: str
) -> dict[str, Rule]:
    """The rule of each module that one matches with a method but ``none``; of several the last.

    Args:
        modules: names of each module, its own and those that it has in other places.
        default: the modules that rules without a pattern mean.

    Raises:
        ConfigError: a rule matches nothing.
    """
    chosen: dict[str, Rule] = {}
    for rule in sorted(rules, key=lambda rule: rule.pattern is not None):
        matched = [name for name, others in modules.items() if rule.matches(others, default=name in default)]
        if not matched:
            raise _no_match(rule, modules, text)
        chosen |= dict.fromkeys(matched, rule)
    return {name: rule for name, rule in chosen.items() if rule.method != NONE}


def _no_match(rule: Rule, modules: Mapping[str, Iterable[str]], text: str) -> ConfigError:
    names = list(dict.fromkeys(name for others in modules.values() for name in others))
    near = difflib.get_close_matches(rule.pattern or "", names, n=3, cutoff=0.4) or names[:_SHOWN]
    what = "no weight" if rule.pattern is None else rule.pattern
    return ConfigError(
        "E-BUILD-QUANTIZATION", f"quantization {text!r}", "a rule matches no module", found=what,
        expected=f"a module of the model: {', '.join(near)}, …" if near else "a model with products",
    )  # fmt: skip


def _ends(name: str) -> list[str]:
    """A module's whole name and those of the modules around it, and each without what is in front: ``a.b.c`` → ``a.b.c, b.c, c, a.b, b, a``."""
    parts = name.split(".")
    return [".".join(parts[first:last]) for last in range(len(parts), 0, -1) for first in range(last)]


def _wrong(text: str, problem: str, expected: str) -> ConfigError:
    return ConfigError("E-BUILD-QUANTIZATION", "quantization", problem, found=repr(text), expected=expected)
