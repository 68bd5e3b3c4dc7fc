"""Change one option at a time and see whether an error is still there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from bestiary.core import device as devices
from bestiary.core.diff.compare import Comparison, Row, Standard, compare
from bestiary.core.diff.open import Ours, references
from bestiary.core.errors import ConfigError
from bestiary.core.plugins import PluginHost
from bestiary.core.program.call_error import CallError
from bestiary.core.program.calls import REFERENCE
from bestiary.core.quant.tensors import Plain
from bestiary.core.sides.engine_side import EngineSide

Kind = Literal["cache", "quantization", "kernel", "fusion", "accumulation", "dtype", "reference"]
_WORDS: dict[Kind, str] = {
    "cache": "KV cache in {}",
    "quantization": "plain weights{}",
    "kernel": "--kernel {}",
    "fusion": "without the fusion {}",
    "accumulation": "sums in float32 ({})",
    "dtype": "dtype {}",
    "reference": "all references, no fusion",
}


@dataclass(frozen=True)
class Variant:
    """Our side with one thing changed.

    Args:
        subject: what was changed: ``rms_norm=reference``, ``residual_norm``, ``float32``.
        options: of ``load_engine``.
        full_precision: run with the device's shortcuts in products off.
        instead_of: of a kernel: the one that ran the call.
    """

    kind: Kind
    subject: str
    options: Mapping[str, Any] = field(default_factory=dict)
    full_precision: bool = False
    instead_of: str | None = None

    def __str__(self) -> str:
        return _WORDS[self.kind].format(self.subject)


@dataclass(frozen=True)
class Outcome:
    """What became of the error.

    Args:
        excess: the own error of the tensor over what is allowed; None where the variant can't run.
        first: the first tensor that is wrong then.
        problem: why it can't run.
        earlier: ``first`` is made before the tensor: the change shows a mistake nearer to where it is made.
    """

    variant: Variant
    excess: float | None
    first: str | None = None
    problem: str = ""
    earlier: bool = False

    @classmethod
    def of(cls, variant: Variant, found: Comparison, name: str) -> Outcome:
        """What became of the error of the tensor ``name``."""
        there, first = found.row(name), found.first
        excess = None if there is None else there.excess
        return cls(variant, excess, first.name if first else None, earlier=found.wrong_before(name))

    @property
    def gone(self) -> bool:
        """Whether the error went away, and not to what the tensor is made of."""
        return self.excess is not None and self.excess <= 1 and not self.earlier


class Suspects(NamedTuple):
    """What may have made a tensor wrong.

    Args:
        side: our engine.
        ops: op → the kernel that ran it where the tensor is worst, of all calls between the tensor and the nearest ones that
            are compared; the nearest first.
        plain: what makes plain what is stored in few bits, where something is.
    """

    side: EngineSide
    ops: Mapping[str, str]
    host: PluginHost
    plain: Variant | None = None


def suspects(
    side: EngineSide, row: Row, standard: Standard, host: PluginHost, plain: Variant | None = None
) -> Suspects:
    """The calls behind a tensor."""
    tokens = 1 if row.worst == "decode" else standard.prompt.chunks[0]
    ops: dict[str, str] = {}
    for call in side.between(row.name, standard.seen.tensors):
        ops.setdefault(call.target.name, side.kernel(call, tokens))
    return Suspects(side, ops, host, plain)


def plain_storage(side: EngineSide, source: Path | None, *, cache: bool, weights: bool) -> Variant | None:
    """Plain weights, and the KV cache in the activations' dtype; None: neither is asked for.

    Args:
        source: a directory with the plain weights; None: as :class:`~bestiary.core.quant.tensors.Plain` says.
    """
    dtype = str(side.engine.network.geometry.dtype).removeprefix("torch.")
    options: dict[str, Any] = {"kv_dtype": dtype} if cache else {}
    if not weights:
        return Variant("cache", dtype, options) if cache else None
    names = frozenset(name for name, _ in side.engine.network.module.named_parameters())
    options["plain"] = Plain(names if source else frozenset(side.methods), source)
    return Variant("quantization", f" and the KV cache in {dtype}" if cache else "", options)


def all_references(host: PluginHost) -> Variant:
    """No kernel and no fusion; what is stored in few bits stays so."""
    return Variant("reference", f"*={REFERENCE}", references(host))


def _plain(of: Suspects) -> Iterator[Variant]:
    if of.plain is not None:
        yield of.plain


def _references(of: Suspects) -> Iterator[Variant]:
    for op, kernel in of.ops.items():
        yield Variant("kernel", f"{op}={REFERENCE}", {"kernels": {op: REFERENCE}}, instead_of=kernel)


def _other_kernels(of: Suspects) -> Iterator[Variant]:
    for op, current in list(of.ops.items())[:1]:
        for kernel in of.host.kernels(op):
            if kernel.name != current and not kernel.deterministic_only:
                subject = f"{op}={kernel.name}"
                yield Variant("kernel", subject, {"kernels": {op: kernel.name}}, instead_of=current)


def _fusions(of: Suspects) -> Iterator[Variant]:
    """Those whose op made the tensor first."""
    applied = [name for name, count in of.side.engine.network.fusions.items() if count]
    makers = {fusion.name for fusion in of.host.fusions() if fusion.op in of.ops}
    for name in sorted(applied, key=lambda name: name not in makers):
        yield Variant("fusion", name, {"without_fusions": (name,)})


def _sums(of: Suspects) -> Iterator[Variant]:
    target = of.side.engine.network.target
    widened = any(kernel.name == "widened" for op in of.ops for kernel in of.host.kernels(op))
    if target.device.type != "cpu":
        yield Variant("accumulation", "no TF32, no 16-bit sums", full_precision=True)
    elif target.dtype != torch.float32 and widened:
        yield Variant("accumulation", "*=widened", {"kernels": {"*": "widened"}})


def _dtype(of: Suspects) -> Iterator[Variant]:
    if of.side.engine.network.target.dtype != torch.float32:
        # ``load_engine`` gives the cache the dtype, too, which would be a second change.
        kept = {"kv_dtype": of.side.few_bits} if of.side.few_bits else {}
        yield Variant("dtype", "float32", {"dtype": "float32", **kept})


def _everything(of: Suspects) -> Iterator[Variant]:
    yield all_references(of.host)


#: Where variants come from. Another kind takes a function here, its words above, and a rule in ``verdict``.
_SOURCES: tuple[Callable[[Suspects], Iterator[Variant]], ...] = (
    _plain,
    _references,
    _other_kernels,
    _fusions,
    _sums,
    _dtype,
    _everything,
)


def variants(of: Suspects) -> list[Variant]:
    """All changes that may be to blame for a tensor, the nearest first."""
    return [variant for source in _SOURCES for variant in source(of)]


def bisect(
    ours: Ours,
    tries: Sequence[Variant],
    row: Row,
    standard: Standard,
    advance: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Try every variant on the prompt on which the tensor is worst."""
    outcomes = []
    for variant in tries:
        outcomes.append(attempt(ours, variant, row.name, [standard]))
        advance()
    return outcomes


def attempt(ours: Ours, variant: Variant, name: str, right: Sequence[Standard]) -> Outcome:
    """What a variant does to the tensor ``name``."""
    longest = max(len(standard.prompt.tokens) for standard in right)
    try:
        with devices.full_precision() if variant.full_precision else nullcontext():
            found = compare(ours.load(longest, **variant.options), right, only_own=True)
    except Exception as error:  # a kernel that nobody measured may fail in any way, and memory may not do
        return Outcome(variant, None, problem=why(error))
    return Outcome.of(variant, found, name)


def why(error: Exception) -> str:
    """Why a variant can't run, in short."""
    if isinstance(error, CallError):
        return f"{error.subject} raised {error.raised}"
    if isinstance(error, ConfigError):
        return error.problem.removeprefix("can't run this model's call: ")
    return f"{type(error).__name__}: {error}"[:200]
