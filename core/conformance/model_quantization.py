"""Every registered quantization method, and a cache of few bits, do as little harm as they state, on one rank and on two."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case
from bestiary.core.conformance.model_logits import FLOAT32, difference
from bestiary.core.conformance.model_noise import allowed, answers, error
from bestiary.core.engine.steps import logits, whole
from bestiary.core.errors import ConfigError
from bestiary.core.quant.bound import relative
from bestiary.core.quant.choose import method_class
from bestiary.core.quant.method import Method
from bestiary.core.quant.rules import parse_rules
from bestiary.spec import Quantization

#: By kind of cache, how far the numbers of a head of normal ones are off: as the bound of a method.
CACHES = {"int8": 0.01, "fp8": 0.04, "int4": 0.12}


def within_bound(case: Case, method: Quantization, findings: Findings, *, thorough: bool = False) -> None:
    """Logits of an engine that quantizes as it is loaded, against the reference's.

    An engine whose logits are those of the unquantized one was not quantized. A method that can't take the config's sizes
    may refuse it with the arithmetic.

    Args:
        thorough: with all the options that the method wants to be checked with, not with its default ones alone.
    """
    variants = method_class(method.name, case.suite.host).variants if thorough else ("",)
    for options in dict.fromkeys(("", *variants)):
        rule = f"{method.name}:{options}" if options else method.name
        made, bound = stated(case, method, rule)
        if made.wants:
            findings.refused(f"{rule}: wants a calibration, of which a random model says nothing")
        else:
            _within(case, rule, bound, findings, quantization=rule)


def caches(case: Case, findings: Findings) -> None:
    """Logits over each kind of cache of few bits, against the reference's. A model whose ops know no codes may refuse it."""
    if not case.load().network.program.caches:
        findings.refused("the model has no key-value cache")
        return
    for kind, bound in CACHES.items():
        _within(case, f"a cache of {kind}", bound, findings, kv_dtype=kind)


def ranks_agree(case: Case, what: dict[str, Any], found: Tensor | str, findings: Findings) -> None:
    """Logits of two tensor-parallel ranks against those of one, of engines that quantize as they are loaded.

    Where only weights are quantized they are the same numbers, within what an order of sums does. Activations are
    quantized by each rank for itself, some of their columns, and a number of a cache may take the code beside its own: the
    bound is what is allowed.

    Args:
        what: options of ``load_engine``.
        found: logits of the two, or why the engine could not be divided.
    """
    (name,) = what.values()
    if isinstance(found, str):
        findings.refused(f"{name}: {found}")
        return
    tokens = case.tokens(case.length)
    if "quantization" in what:
        (method,) = (one for one in case.suite.host.quantizations() if one.name == name)
        made, bound = stated(case, method, name)
        if type(made).linear is Method.linear or made.storage_only("cpu"):
            one = logits(case.load(**what), whole(tokens, *case.blocks(1)))
            findings.within(f"logits of two ranks with {name}", difference(found, one), FLOAT32)
            return
    else:
        bound = CACHES[name]
    median = float(relative(found, case.expected(tokens)).median())
    findings.within(f"logits of two ranks with {name}, relative", median, allowed(case, bound))


def stated(case: Case, method: Quantization, rule: str) -> tuple[Method, float]:
    """The method with the options of a rule, and its bound."""
    options = dict(parse_rules(rule)[0].options)
    made = method_class(method.name, case.suite.host).of(method.name, options)
    bound = getattr(made, "bound", None)
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < math.inf:
        raise AssertionError(
            f"quantization {method.name}: its method states no bound (found {bound!r}, expected a positive number)"
        )
    return made, float(bound)


def _within(case: Case, what: str, bound: float, findings: Findings, **options: Any) -> None:
    try:
        engine = case.load(**options)
    except ConfigError as refusal:
        assert refusal.found and refusal.expected, f"{what} refuses the config without the arithmetic: {refusal}"
        findings.refused(f"{what}: {refusal.subject}: {refusal.found}, expected {refusal.expected}")
        return
    pairs = zip(answers(case, engine), _plain(case), strict=True)
    changed = any(not torch.equal(found, plain) for (_, found), (_, plain) in pairs)
    assert changed, f"{what} changed nothing: the engine is not quantized"
    findings.within(f"logits with {what}, relative", error(case, engine), allowed(case, bound))


def _plain(case: Case) -> list[tuple[list[int], Tensor]]:
    """The answers of an engine that is not quantized."""
    known = case.suite.shared.setdefault("plain", {})
    if case.name not in known:
        known[case.name] = answers(case, case.load())
    found: list[tuple[list[int], Tensor]] = known[case.name]
    return found
