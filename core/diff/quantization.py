"""What quantized weights cost, layer by layer, and which of them are farther from the plain ones than their method makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bestiary.core.checkpoint.weights import Weights
from bestiary.core.diff.compare import Standard, layer_of
from bestiary.core.diff.folded import Folded, folded
from bestiary.core.diff.open import Ours
from bestiary.core.plugins import PluginHost
from bestiary.core.quant.bound import ALLOWED, relative
from bestiary.core.quant.choose import Methods, method_class
from bestiary.core.quant.method import Method
from bestiary.core.quant.tensors import Plain, stored_name
from bestiary.core.sides.engine_side import EngineSide

#: Columns that are looked at together: the fewest that share a scale.
_COLUMNS = 32
#: So many times as far from the plain weight as rounding it makes it: others who store a weight in the same way round otherwise.
_FARTHER = 3.0
#: The same of what a calibration made, which rounds by what the weight does, not by what it is.
_CALIBRATED = 6.0


class Strange(NamedTuple):
    """A quantized parameter that is farther from its plain weight than its method makes it.

    Args:
        share: of the weight that is, by blocks of 32 columns of a row.
        times: how much farther, at the worst block.
    """

    parameter: str
    method: str
    share: float
    times: float

    def __str__(self) -> str:
        where = "all of it" if self.share == 1 else f"{self.share:.2g} of it"
        return f"{self.parameter} ({self.method}): {where} is up to {self.times:.3g} times as far from the plain weight as the method makes it"


class Cost(NamedTuple):
    """What a part of the model costs: the logits' error where that part alone is quantized; ``layers.3``, ``head``."""

    part: str
    error: float


@dataclass(frozen=True)
class Loss:
    """What quantized weights cost.

    Args:
        methods: for people, with how many weights have each.
        error: of the logits, the median over tokens of ``rms(found − exact) / rms(exact − mean)``, with a plain KV cache.
        allowed: of it: twice what random errors of the size of the methods' bounds do to this model.
        strange: parameters that are not what their method makes of the plain ones; the farthest first.
        judged: whether there were plain weights to see that by.
        costs: by layer, and by module outside of layers.
    """

    methods: str
    error: float
    allowed: float
    strange: tuple[Strange, ...] = ()
    judged: bool = False
    costs: tuple[Cost, ...] = ()

    @property
    def within(self) -> bool:
        """Whether it is what the methods are known to lose."""
        return not self.strange and self.error <= self.allowed

    @property
    def text(self) -> str:
        """The verdict."""
        if self.strange:
            more = f", and {len(self.strange) - 1} more" if len(self.strange) > 1 else ""
            return f"quantization of {self.strange[0]}{more}"
        logits = f"logits are off by {self.error:.3g} of their size, {self.allowed:.3g} allowed"
        if self.within:
            return f"quantization ({self.methods}), within its method's bound: {logits}"
        worst = max(self.costs, key=lambda one: one.error)
        most = f"that of {worst.part} alone moves them by {worst.error:.3g}"
        return f"quantization of {worst.part} most ({self.methods}), beyond its method's bound: {logits}; {most}"


def method_names(methods: Methods, host: PluginHost) -> str:
    """The names of methods, with how many weights have each, for people."""
    counts: dict[str, int] = {}
    for method in methods.values():
        name = name_of(method, host)
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{name} of {count} weight{'s' if count > 1 else ''}" for name, count in counts.items())


def name_of(method: Method, host: PluginHost) -> str:
    """The name that a method is registered under."""
    known = {method_class(one.name, host): one.name for one in host.quantizations()}
    return known.get(type(method), type(method).__name__)


def parts_of(methods: Methods) -> dict[str, list[str]]:
    """The quantized parameters by layer; those outside of layers by module."""
    found: dict[str, list[str]] = {}
    for name in methods:
        found.setdefault(layer_of(name) or name.rpartition(".")[0] or name, []).append(name)
    return found


def measured(
    ours: Ours, side: EngineSide, plain: Mapping[str, Any], standard: Standard, advance: Callable[[], None]
) -> Loss:
    """What our side's quantized weights cost on one prompt.

    Args:
        plain: options of ``load_engine`` that make weights, and a cache of few bits, plain.
        advance: called after each part, and once before them.
    """
    others = {name: value for name, value in plain.items() if name != "plain"}
    whole: Plain = plain["plain"]
    longest = len(standard.prompt.tokens)

    def alone(part: str, names: Iterable[str]) -> Cost:
        options = {**others, "plain": replace(whole, names=whole.names - _in_part(part, names, whole))}
        error = _error(ours.load(longest, **options), standard)
        advance()
        return Cost(part, error)

    methods = side.methods
    noise = replace(whole, noise={name: method.bound for name, method in methods.items()})
    bounds = _error(ours.load(longest, **{**others, "plain": noise}), standard)
    advance()
    strange = sorted(_strange(ours, methods, whole.source), key=lambda one: -one.times)
    return Loss(
        methods=method_names(methods, ours.host),
        error=_error(ours.load(longest, **others) if others else side, standard),
        allowed=ALLOWED * bounds,
        strange=tuple(strange),
        judged=whole.source is not None,
        costs=tuple(alone(part, names) for part, names in parts_of(methods).items()),
    )


def _in_part(part: str, names: Iterable[str], whole: Plain) -> frozenset[str]:
    """A part's quantized parameters, and all else in its layer: a calibration may have scaled a norm against its readers."""
    return frozenset({*names, *(name for name in whole.names if layer_of(name) == part)})


def _error(side: EngineSide, standard: Standard) -> float:
    found = side.run(standard.prompt.tokens, standard.prompt.chunks).tensors["logits"]
    return float(relative(found, standard.seen.tensors["logits"]).median())


def _strange(ours: Ours, methods: Methods, source: Path | None) -> Iterator[Strange]:
    """Those that rounding makes much closer to the plain weight."""
    if source is None:
        return
    own, others = Weights.open(ours.directory), Weights.open(source)

    def plain(name: str) -> Tensor:
        return others.tensor(name).float()

    def found(name: str) -> Tensor:
        if name not in methods:
            return own.tensor(name).float()
        shape = tuple(others.tensor(name).shape)
        stored = {part: own.tensor(stored_name(name, part)) for part in methods[name].layout(shape)}
        return methods[name].weight(stored, shape, "float32")

    scales = folded(ours, found, plain) if any(method.wants for method in methods.values()) else {}
    for name, method in methods.items():
        weight = scales.get(name, Folded()).on(plain(name))
        made = method.weight(method.quantize(weight), tuple(weight.shape), "float32")
        times, limit = _times(found(name), made, weight), _CALIBRATED if method.wants else _FARTHER
        if float(times.max()) > limit:
            yield Strange(name, name_of(method, ours.host), float((times > limit).float().mean()), float(times.max()))


def _times(found: Tensor, made: Tensor, weight: Tensor) -> Tensor:
    """By block of columns of a row, how many times as far from the weight ``found`` is as ``made``."""

    def blocks(tensor: Tensor) -> Tensor:
        flat = (tensor - weight).flatten(0, -2)
        padded = torch.nn.functional.pad(flat, (0, -flat.shape[-1] % _COLUMNS))
        return torch.linalg.vector_norm(padded.reshape(len(flat), -1, _COLUMNS), dim=-1)

    apart, allowed = blocks(found), blocks(made)
    row = allowed.square().mean(-1, keepdim=True).sqrt()
    floor = 1e-3 * weight.flatten(0, -2).square().mean(-1, keepdim=True).sqrt()
    return apart / torch.maximum(torch.maximum(allowed, row), floor).clamp(min=torch.finfo(torch.float32).tiny)
