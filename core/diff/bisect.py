"""Change one option at a time and see whether an error is still there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from bestiary.core import device as devices
from bestiary.core.diff.compare import Row, Standard, compare
from bestiary.core.diff.open import Ours, references
from bestiary.core.errors import ConfigError
from bestiary.core.plugins import PluginHost
from bestiary.core.program.calls import REFERENCE
from bestiary.core.sides.engine_side import EngineSide

Kind = Literal["kernel", "fusion", "accumulation", "dtype", "reference"]


@dataclass(frozen=True)
class Variant:
    """Our side with one thing changed.

    Args:
        subject: what was changed: ``rms_norm=reference``, ``residual_norm``, ``float32``.
        options: of ``load_engine``.
        full_precision: run with the device's shortcuts in products off.
    """

    kind: Kind
    subject: str
    options: Mapping[str, Any] = field(default_factory=dict)
    full_precision: bool = False

    def __str__(self) -> str:
        words = {
            "kernel": f"--kernel {self.subject}",
            "fusion": f"without the fusion {self.subject}",
            "accumulation": f"sums in float32 ({self.subject})",
            "dtype": f"dtype {self.subject}",
            "reference": "all references, no fusion",
        }
        return words[self.kind]


@dataclass(frozen=True)
class Outcome:
    """What became of the error.

    Args:
        excess: the own error of the tensor over what is allowed; None where the variant can't run.
        first: the first tensor that is wrong then.
        problem: why it can't run.
    """

    variant: Variant
    excess: float | None
    first: str | None = None
    problem: str = ""

    @property
    def gone(self) -> bool:
        """Whether the error went away."""
        return self.excess is not None and self.excess <= 1


def variants(side: EngineSide, row: Row, standard: Standard, host: PluginHost) -> Iterator[Variant]:
    """All changes that may be to blame for a tensor, the nearest first."""
    calls = side.between(row.name, standard.seen.tensors)
    ops = dict.fromkeys(call.target.name for call in calls)
    current = {row.by.kernel} if row.by else set()
    for op in ops:
        yield Variant("kernel", f"{op}={REFERENCE}", {"kernels": {op: REFERENCE}})
    for op in list(ops)[:1]:
        for kernel in host.kernels(op):
            if kernel.name not in current and not kernel.deterministic_only:
                yield Variant("kernel", f"{op}={kernel.name}", {"kernels": {op: kernel.name}})
    for name, count in side.engine.network.fusions.items():
        if count:
            yield Variant("fusion", name, {"without_fusions": (name,)})
    target = side.engine.network.target
    widened = any(kernel.name == "widened" for op in ops for kernel in host.kernels(op))
    if target.device.type != "cpu":
        yield Variant("accumulation", "no TF32, no 16-bit sums", full_precision=True)
    elif target.dtype != torch.float32 and widened:
        yield Variant("accumulation", "*=widened", {"kernels": {"*": "widened"}})
    if target.dtype != torch.float32:
        yield Variant("dtype", "float32", {"dtype": "float32"})
    yield Variant("reference", "*=reference", references(host))


def bisect(
    ours: Ours,
    side: EngineSide,
    row: Row,
    standards: Sequence[Standard],
    advance: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Try every variant on the prompt on which the tensor is worst."""
    standard = standards[row.prompt]
    longest = len(standard.prompt.tokens)
    outcomes = []
    for variant in variants(side, row, standard, ours.host):
        outcomes.append(_attempt(ours, variant, row, standard, longest))
        advance()
    return outcomes


def _attempt(ours: Ours, variant: Variant, row: Row, standard: Standard, longest: int) -> Outcome:
    try:
        with devices.full_precision() if variant.full_precision else nullcontext():
            found = compare(ours.load(longest, **variant.options), [standard], only_own=True)
    except ConfigError as error:
        return Outcome(variant, None, problem=error.problem.removeprefix("can't run this model's call: "))
    except Exception as error:  # a kernel that nobody measured may fail in any way, and memory may not do
        return Outcome(variant, None, problem=f"{type(error).__name__}: {error}"[:200])
    there = found.row(row.name)
    first = found.first
    return Outcome(variant, None if there is None else there.excess, first.name if first else None)
