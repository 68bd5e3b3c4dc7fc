"""What an error looks like, from the numbers alone. Each pattern is tested: it accounts for the error, or it is not told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.core.diff.compare import Prompt

#: A file of a model plugin's contract.
CONFIG, CONVERT, MODEL = "config.py or model.py", "convert.py", "model.py"


class Finding(NamedTuple):
    """Something that was found to be so, and the file of the model plugin that it points to, if it is the model's fault."""

    text: str
    part: str | None = None


class Case(NamedTuple):
    """A tensor that is wrong.

    Args:
        name: of the tensor.
        found, wanted: ours and the reference's, ``[tokens, …]``.
        fits: whether a tensor lies within rounding of another.
        others: all tensors of the reference.
        ours: all our tensors.
        weights: the parameters of the reference's module of that name.
        dtype: of the two sides' that with the fewest digits.
    """

    name: str
    found: Tensor
    wanted: Tensor
    fits: Callable[[Tensor, Tensor], bool]
    others: Mapping[str, Tensor]
    ours: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    prompt: Prompt
    dtype: torch.dtype = torch.float32


def patterns(case: Case) -> list[Finding]:
    """What holds of the error, the most telling first."""
    if case.found.numel() != case.wanted.numel():
        sizes = f"{list(case.found.shape[1:])} for each token, where the reference has {list(case.wanted.shape[1:])}"
        return [Finding(f"it has another size: {sizes}", MODEL), *_another(case)]
    case = case._replace(found=case.found.reshape(case.wanted.shape))
    found = [*_where(case), *_not_finite(case)]
    if case.found.isfinite().all():
        whole = [*_factor(case)]  # a small one looks like much else
        found += whole or [one for look in _LOOKS for one in look(case)]
    return found


def _where(case: Case) -> Iterator[Finding]:
    """Which tokens are wrong, if not all."""
    pairs = zip(case.found, case.wanted, strict=True)
    bad = [token for token, (ours, right) in enumerate(pairs) if not case.fits(ours, right)]
    if not bad or len(bad) == len(case.wanted):
        return
    decodes = case.prompt.parts.get("decode", slice(0, 0))
    if decodes.start is not None and bad == list(range(decodes.start, len(case.wanted))):
        yield Finding("wrong in decodes only: a step of one token has another kernel, or reads the cache wrongly")
    elif decodes.start is not None and bad == list(range(decodes.start)):
        yield Finding("wrong in steps of many tokens only; decodes are right")
    elif bad == list(range(bad[0], len(case.wanted))):
        yield Finding(f"right up to token {bad[0] - 1}, wrong from token {bad[0]} on")
    else:
        yield Finding(f"wrong at {len(bad)} of {len(case.wanted)} tokens, the first of them {bad[0]}")


def _not_finite(case: Case) -> Iterator[Finding]:
    wrong = ~case.found.isfinite() & case.wanted.isfinite()
    if wrong.any():
        what = "NaN" if bool(case.found[wrong].isnan().all()) else "infinite or NaN"
        yield Finding(f"{int(wrong.sum())} of {wrong.numel()} numbers are {what}")


def _zeros(case: Case) -> Iterator[Finding]:
    rows = case.found.reshape(len(case.found), -1)
    empty = (rows == 0).all(-1) & (case.wanted.reshape(rows.shape) != 0).any(-1)
    if empty.all():
        yield Finding("all of it is zero: nothing was written")
    elif empty.any():
        yield Finding(f"{int(empty.sum())} of {len(rows)} rows are zero")
    columns = (rows == 0).all(0) & (case.wanted.reshape(rows.shape) != 0).any(0)
    if columns.any() and not empty.all():
        yield Finding(f"{int(columns.sum())} of {rows.shape[1]} features are zero at every token")


def _another(case: Case) -> Iterator[Finding]:
    """It is another tensor of the reference."""
    for name, other in case.others.items():
        same = name != case.name and other.numel() == case.found.numel() and not _equal(case, other)
        if not same or not case.fits(case.found.reshape(other.shape), other):
            continue
        module = name.removesuffix(".input")
        if module != name and module in case.others and module not in case.ours:
            yield Finding(f"it is what the reference gives to {module}, which is not applied here", MODEL)
        elif name in case.ours and _alike(case, case.ours[name], other):
            yield Finding(f"it is the reference's {name}, which ours is, too: what is done with it differs", MODEL)
        else:
            yield Finding(f"it is the reference's {name}, which ours is not: weights are exchanged", CONVERT)
        return


def _alike(case: Case, one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and case.fits(one.reshape(other.shape), other)


def _equal(case: Case, other: Tensor) -> bool:
    return other.numel() == case.wanted.numel() and case.fits(other.reshape(case.wanted.shape), case.wanted)


def _factor(case: Case) -> Iterator[Finding]:
    ours, right = case.found.double(), case.wanted.double()
    size = float((right * right).sum())
    factor = float((ours * right).sum()) / size if size else 0.0
    if factor and case.fits((ours / factor).float(), case.wanted):
        yield Finding(f"all of it is {factor:.6g} times the reference", MODEL)


def _factors(case: Case) -> Iterator[Finding]:
    """Each token or each feature has a factor of its own."""
    ours, right = case.found.double(), case.wanted.double()
    rows = _rows(right)
    factors = (_rows(ours) * rows).sum(-1) / (rows * rows).sum(-1).clamp(min=1e-300)
    if bool((factors != 0).all()) and case.fits((_rows(ours) / factors[:, None]).float(), _rows(case.wanted)):
        least, most = float(factors.min()), float(factors.max())
        yield Finding(f"each row is a multiple of the reference's, by {least:.6g} to {most:.6g}")
        return
    columns = (_rows(ours) * rows).sum(0) / (rows * rows).sum(0).clamp(min=1e-300)
    if len(rows) > 2 and bool((columns != 0).all()) and case.fits((_rows(ours) / columns).float(), _rows(case.wanted)):
        yield Finding("each feature is a multiple of the reference's, the same at every token")


def _offset(case: Case) -> Iterator[Finding]:
    """The same vector is missing, or is too much, at every token."""
    missing = (_rows(case.wanted).double() - _rows(case.found).double()).mean(0)
    if len(case.found) < 3 or not case.fits((_rows(case.found).double() + missing).float(), _rows(case.wanted)):
        return
    for name, weight in case.weights.items():
        if weight.numel() == missing.numel():
            for word, sign in (("missing", 1), ("added twice", -1)):
                right = _rows(case.found) + sign * weight.reshape(-1)
                if case.fits(right, _rows(case.wanted)):
                    yield Finding(
                        f"the {name} is {word}: the same vector at every token, and it is the reference's", CONFIG
                    )
                    return
    size = float(missing.abs().max())
    yield Finding(f"the same vector is missing at every token, as a bias would be (at most {size:.3g})", CONFIG)


def _order(case: Case) -> Iterator[Finding]:
    """The numbers are right, and in another place."""
    ours, right = _rows(case.found), _rows(case.wanted)
    for shift in (1, -1):
        if len(ours) > 3:
            a, b = (ours[shift:], right[:-shift]) if shift > 0 else (ours[:shift], right[-shift:])
            if case.fits(a, b):
                yield Finding(f"rows are shifted by {-shift:+d}: each token has what belongs to its neighbour", MODEL)
                return
    if not case.fits(ours.sort(-1).values, right.sort(-1).values):
        return
    if case.wanted.shape[-1] % 2 == 0:
        halves, pairs = to_halves(case.found), to_pairs(case.found)
        for changed, text in ((halves, "pairs where halves are wanted"), (pairs, "halves where pairs are wanted")):
            if case.fits(changed, case.wanted):
                yield Finding(f"the features of each head are interleaved otherwise: {text}", CONVERT)
                return
    yield Finding("each row has the reference's numbers in another order: features are permuted", CONVERT)


def _rounded(case: Case) -> Iterator[Finding]:
    """Numbers that have fewer digits than the reference's."""
    for dtype in (torch.bfloat16, torch.float16):
        short = bool(case.found.any()) and torch.equal(case.found, case.found.to(dtype).float())
        if (
            torch.finfo(case.dtype).eps < torch.finfo(dtype).eps
            and short
            and not torch.equal(case.wanted, case.wanted.to(dtype).float())
        ):
            name = str(dtype).removeprefix("torch.")
            yield Finding(f"all numbers have the digits of {name} only: something is computed in it", MODEL)
            return


def to_halves(x: Tensor) -> Tensor:
    """Features ``a₀ b₀ a₁ b₁ …`` as ``a₀ a₁ … b₀ b₁ …``."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), -1)


def to_pairs(x: Tensor) -> Tensor:
    """The way back."""
    return torch.stack(x.chunk(2, -1), -1).flatten(-2)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)


_LOOKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (_zeros, _another, _order, _factors, _offset, _rounded)
