"""Every registered quantization method stays within the bound that it states, on one rank and on two."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case
from bestiary.core.conformance.model_logits import FLOAT32, difference
from bestiary.core.engine.steps import logits, whole
from bestiary.core.errors import ConfigError
from bestiary.core.quant.bound import relative
from bestiary.core.quant.choose import method_class
from bestiary.core.quant.method import Method
from bestiary.spec import Quantization

_SEEDS = range(20, 24)


def within_bound(case: Case, method: Quantization, findings: Findings) -> None:
    """Logits of an engine that quantizes as it is loaded, against the reference's; the method's ``bound`` is what is allowed.

    An engine whose logits are those of the unquantized one was not quantized. A method that can't take the config's sizes
    may refuse it with the arithmetic.
    """
    made, bound = default(case, method)
    if made.wants:
        findings.refused(f"{method.name}: wants a calibration, of which a random model says nothing")
        return
    try:
        engine = case.load(quantization=method.name)
    except ConfigError as error:
        assert error.found and error.expected, f"{method.name} refuses the config without the arithmetic: {error}"
        findings.refused(f"{method.name}: {error.subject}: {error.found}, expected {error.expected}")
        return
    plain = case.load()
    errors: list[Tensor] = []
    changed = False
    for seed in _SEEDS:
        tokens = case.tokens(case.length, seed=seed)
        found = logits(engine, whole(tokens, *case.blocks(seed)))
        changed |= not torch.equal(found, logits(plain, whole(tokens, *case.blocks(seed))))
        errors.append(relative(found, case.expected(tokens)))
    assert changed, f"{method.name} changed nothing: the engine is not quantized"
    findings.within(f"logits with {method.name}, relative", float(torch.cat(errors).median()), bound)


def ranks_agree(case: Case, method: Quantization, found: Tensor | str, findings: Findings) -> None:
    """Logits of two tensor-parallel ranks against those of one, of engines that quantize as they are loaded.

    Where only weights are quantized they are the same numbers, within what an order of sums does. Activations are
    quantized by each rank for itself, some of their columns, so that the bound is what is allowed.

    Args:
        found: logits of the two, or why the engine could not be divided.
    """
    made, bound = default(case, method)
    if isinstance(found, str):
        findings.refused(f"{method.name}: {found}")
        return
    tokens = case.tokens(case.length)
    one = logits(case.load(quantization=method.name), whole(tokens, *case.blocks(1)))
    if type(made).linear is Method.linear or made.storage_only("cpu"):
        findings.within(f"logits of two ranks with {method.name}", difference(found, one), FLOAT32)
    else:
        error = float(relative(found, case.expected(tokens)).median())
        findings.within(f"logits of two ranks with {method.name}, relative", error, bound)


def default(case: Case, method: Quantization) -> tuple[Method, float]:
    """The method with its default options, and its bound."""
    made = method_class(method.name, case.suite.host).of(method.name, {})
    bound = getattr(made, "bound", None)
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < math.inf:
        raise AssertionError(
            f"quantization {method.name}: its method states no bound (found {bound!r}, expected a positive number)"
        )
    return made, float(bound)
