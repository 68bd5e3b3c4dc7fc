"""Every registered quantization method stays within the bound that it states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case
from bestiary.core.engine.steps import logits, whole
from bestiary.core.errors import ConfigError
from bestiary.core.plugins import resolve
from bestiary.spec import Quantization


def within_bound(case: Case, method: Quantization, findings: Findings) -> None:
    """Logits of the quantized engine against the reference's: ``rms(quantized - exact) / rms(exact - mean of the row)``.

    The method object says what is allowed: ``bound``, a positive number. An engine whose logits are those of the
    unquantized one was not quantized. A method that can't take the config's sizes may refuse it with the arithmetic.
    """
    bound = _bound(method)
    try:
        engine = case.load(build={"quantization": method.name})
    except ConfigError as error:
        assert error.found and error.expected, f"{method.name} refuses the config without the arithmetic: {error}"
        findings.refused(f"{method.name}: {error.subject}: {error.found}, expected {error.expected}")
        return
    plain = case.load()
    off: list[Tensor] = []
    size: list[Tensor] = []
    changed = False
    for seed in range(20, 24):
        tokens = case.tokens(case.length, seed=seed)
        found, exact = logits(engine, whole(tokens, *case.blocks(seed))), case.expected(tokens)
        changed |= not torch.equal(found, logits(plain, whole(tokens, *case.blocks(seed))))
        off.append((found - exact).square().mean())
        size.append((exact - exact.mean(-1, keepdim=True)).square().mean())
    assert changed, f"{method.name} changed nothing: the engine is not quantized"
    relative = (float(torch.stack(off).sum()) / float(torch.stack(size).sum())) ** 0.5
    findings.within(f"logits with {method.name}, relative", relative, bound)


def _bound(method: Quantization) -> float:
    made: Any = resolve(method.method, needed_by=f"quantization {method.name}")
    bound = getattr(made, "bound", None)
    if isinstance(bound, bool) or not isinstance(bound, int | float) or bound <= 0:
        raise AssertionError(
            f"quantization {method.name}: its method states no bound (found {bound!r}, expected a positive number)"
        )
    return float(bound)
