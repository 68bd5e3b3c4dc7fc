"""What a call would have made with another argument: eps, a window, a scale, an activation, inputs exchanged, angles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bestiary.core.config import Rope
from bestiary.core.diff.patterns import CONFIG, CONVERT, MODEL, Finding, to_halves, to_pairs
from bestiary.core.ops.activation import ACTIVATIONS
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.sides.engine_side import Captured

Fits = Callable[[Tensor], bool]
#: Numbers that models have where a float is wanted: eps of norms, and scales.
_USUAL = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 1.0, 0.5, 2.0)


def replay(calls: Sequence[Captured], change: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple) -> Tensor:
    """What the op's reference makes of captured calls, their arguments changed; of all their tokens, on the processor."""
    made = []
    for call in calls:
        results = call.op.reference(*change(call.args))
        chosen = call.select(results if isinstance(results, tuple) else (results,))
        made.append(chosen.detach().float().cpu())
    return torch.cat(made)


def other_arguments(calls: Sequence[Captured], fits: Fits, whose: str, ropes: Sequence[Rope] = ()) -> Iterator[Finding]:
    """With which other arguments the calls make what ``fits`` takes.

    Args:
        calls: of one op, with right inputs.
        whose: of which side the tensor is, for the text.
        ropes: the rotary embeddings of the model, whose angles a call of ``rope`` may have.
    """
    if not calls or calls[0].op.mutates:
        return
    op = calls[0].op
    for parameter, value in zip(op.parameters, calls[0].args, strict=True):
        for other in _others(parameter, value, calls, fits):
            if (made := _attempt(calls, op, parameter, other)) is not None and fits(made):
                said = f"{parameter}={plainly(other)} (the call has {plainly(value)})"
                yield Finding(f"{whose} is what {op.name} makes with {said}", CONFIG)
                return
    yield from _exchanged(calls, op, fits, whose)
    if op.name == "rope":
        yield from _turned(calls, fits, whose, ropes)


def plainly(value: Any) -> str:
    """An argument for people: of a float the digits that were meant."""
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _others(parameter: str, value: Any, calls: Sequence[Captured], fits: Fits) -> list[Any]:
    tokens = sum(call.rows.stop - call.rows.start for call in calls)
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, float):
        size = next((arg.shape[-1] for arg in calls[0].args if isinstance(arg, Tensor)), 1)
        return [one for one in (*_USUAL, size**-0.5, 1 / size, value * math.sqrt(size)) if one != value]
    if value is None or isinstance(value, int):
        return [one for one in (None, *range(1, tokens + 2)) if one != value]
    if isinstance(value, str):
        return [one for one in (*ACTIVATIONS, "softmax", "sigmoid") if one != value]
    return []


def _attempt(calls: Sequence[Captured], op: OpDeclaration[..., Any], parameter: str, value: Any) -> Tensor | None:
    place = op.parameters.index(parameter)
    try:
        return replay(calls, lambda args: (*args[:place], value, *args[place + 1 :]))
    except Exception:  # an argument that the op does not take
        return None


def _exchanged(calls: Sequence[Captured], op: OpDeclaration[..., Any], fits: Fits, whose: str) -> Iterator[Finding]:
    """Two tensors in each other's place."""
    places = [n for n, arg in enumerate(calls[0].args) if isinstance(arg, Tensor)]
    for first in places:
        for second in places[places.index(first) + 1 :]:
            one, other = calls[0].args[first], calls[0].args[second]
            if one.shape != other.shape or one.dtype != other.dtype:
                continue

            def swap(args: tuple[Any, ...], first: int = first, second: int = second) -> tuple[Any, ...]:
                changed = list(args)
                changed[first], changed[second] = args[second], args[first]
                return tuple(changed)

            try:
                made = replay(calls, swap)
            except Exception:
                continue
            if fits(made):
                names = f"{op.parameters[first]} and {op.parameters[second]}"
                yield Finding(f"{whose} is what {op.name} makes with {names} exchanged", CONVERT)
                return


def solved_eps(calls: Sequence[Captured], target: Tensor, fits: Fits, whose: str) -> Iterator[Finding]:
    """The eps with which a norm makes a tensor, from how much larger or smaller each row is."""
    if not calls or "eps" not in calls[0].op.parameters or not isinstance(calls[0].args[0], Tensor):
        return
    place = calls[0].op.parameters.index("eps")
    said = calls[0].args[place]
    made = replay(calls).double()
    squares = torch.cat([call.args[0].detach().double().cpu().square().mean(-1) for call in calls])
    rows, wanted = made.reshape(-1, made.shape[-1]), target.double().reshape(-1, made.shape[-1])
    squares = squares.reshape(-1)
    if len(squares) != len(rows):
        return
    factor = (rows * wanted).sum(-1) / (rows * rows).sum(-1).clamp(min=1e-300)
    least = int(squares.argmin())
    if not factor[least]:
        return
    exact = float((squares[least] + said) / factor[least] ** 2 - squares[least])
    for eps in (0.0 if exact < said / 100 else said, float(f"{exact:.0e}"), float(f"{exact:.1e}"), exact):
        if eps < 0 or eps == said:
            continue
        if fits(replay(calls, lambda args, eps=eps: (*args[:place], eps, *args[place + 1 :]))):  # type: ignore[misc]
            solved = f"{eps:.6g}" if eps else "0, or nearly so"
            yield Finding(
                f"{whose} is what {calls[0].op.name} makes with eps={solved} (the call has {said:.3g})", CONFIG
            )
            return


def _turned(calls: Sequence[Captured], fits: Fits, whose: str, ropes: Sequence[Rope]) -> Iterator[Finding]:
    """Queries or keys turned otherwise."""
    ways: tuple[tuple[str, str | None, Callable[[Tensor, Tensor], Tensor]], ...] = (
        (
            "turned pairs of neighbours (x[2i], x[2i + 1]) where the op turns halves (x[i], x[i + R/2])",
            CONVERT,
            _interleaved,
        ),
        ("turned pairs of neighbours, features then sorted into halves", CONVERT, _sorted_interleaved),
        (
            "features in another order: halves where ours has pairs; they are permuted once too little or too much",
            CONVERT,
            _from_pairs,
        ),
        (
            "features in another order: pairs where ours has halves; they are permuted once too little or too much",
            CONVERT,
            _from_halves,
        ),
        ("angles of the other sign", MODEL, _backwards),
        ("features that are not turned", CONFIG, lambda x, table: x),
    )
    for text, part, way in ways:
        made = torch.cat([way(c.args[0].float(), c.args[1].float()).float().cpu() for c in calls])
        if fits(made):
            yield Finding(f"{whose} is made of {text}", part)
            return
    for theta in (1e4, 1e5, 2e5, 5e5, 1e6, 5e6, 1e7, 1e3, 100.0):
        made = torch.cat([_by_theta(call, theta) for call in calls])
        if fits(made):
            said = ", ".join(f"{rope.theta:g}" for rope in ropes) or "another"
            yield Finding(f"{whose} is what rope makes with theta={theta:g} (the model has {said})", CONFIG)
            return


def _interleaved(x: Tensor, table: Tensor) -> Tensor:
    cosine, sine = table.unsqueeze(1).chunk(2, -1)
    first, second = x[..., 0 : table.shape[-1] : 2], x[..., 1 : table.shape[-1] : 2]
    made = torch.stack((first * cosine - second * sine, second * cosine + first * sine), -1).flatten(-2)
    return torch.cat((made, x[..., table.shape[-1] :]), -1)


def _sorted_interleaved(x: Tensor, table: Tensor) -> Tensor:
    made = _interleaved(x, table)
    size = table.shape[-1]
    return torch.cat((to_halves(made[..., :size]), made[..., size:]), -1)


def _halves(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x[..., : 2 * cosine.shape[-1]].chunk(2, -1)
    made = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
    return torch.cat((made, x[..., 2 * cosine.shape[-1] :]), -1)


def _from_pairs(x: Tensor, table: Tensor) -> Tensor:
    cosine, sine = table.unsqueeze(1).chunk(2, -1)
    return _halves(to_halves(x), cosine, sine)


def _from_halves(x: Tensor, table: Tensor) -> Tensor:
    cosine, sine = table.unsqueeze(1).chunk(2, -1)
    return _halves(to_pairs(x), cosine, sine)


def _backwards(x: Tensor, table: Tensor) -> Tensor:
    cosine, sine = table.unsqueeze(1).chunk(2, -1)
    return _halves(x, cosine, -sine)


def _by_theta(call: Captured, theta: float) -> Tensor:
    x, table = call.args[0].float().cpu(), call.args[1]
    half = table.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(call.rows.start, call.rows.stop, dtype=torch.float32).unsqueeze(-1) * frequencies
    return _halves(x, angles.cos().unsqueeze(1), angles.sin().unsqueeze(1))
