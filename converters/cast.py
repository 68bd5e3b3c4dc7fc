"""Changing the dtype of weights, with the checks that a silent change would hide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bestiary.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("float32", "bfloat16", "float16")
# Elements looked at together: small beside any weight worth the name, large beside the cost of a call.
CHUNK = 1 << 20


def check_option(dtype: str) -> None:
    if dtype not in ("auto", *FLOATS):
        raise UsageError(
            "E-USE-DTYPE", "option dtype", "is unknown", found=dtype, expected=", ".join(("auto", *FLOATS))
        )


def _chunks(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    flat = tensor.reshape(-1)
    return ((at, flat[at : at + CHUNK]) for at in range(0, flat.numel(), CHUNK))


def cast(tensor: Tensor, dtype: str, subject: str) -> Tensor:
    """``tensor`` in a dtype by name; itself if it has that dtype.

    Raises:
        DataError: a finite value is beyond float16's range.
    """
    import torch

    target: torch.dtype = getattr(torch, dtype)
    if tensor.dtype == target:
        return tensor
    result = tensor.to(target)
    if target == torch.float16:
        count, largest = 0, 0.0
        for (_, before), (_, after) in zip(_chunks(tensor), _chunks(result), strict=True):
            lost = torch.isinf(after) & torch.isfinite(before)
            if lost.any():
                count += int(lost.sum())
                largest = max(largest, float(before[lost].abs().max()))
        if count:
            raise DataError(
                "E-CONV-OVERFLOW",
                subject,
                f"has {count} values beyond float16's range",
                found=f"{largest:.6g}",
                expected="at most 65504",
                hint="pass --dtype bfloat16 or float32",
            )
    return result


def check_finite(tensor: Tensor, subject: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        DataError: names the count and the first index.
    """
    import torch

    count, first = 0, -1
    for at, chunk in _chunks(tensor):
        # NaN and infinities show in the extremes, which cost a hundredth of a mask.
        if all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(chunk)):
            continue
        bad = ~torch.isfinite(chunk)
        first = at + int(bad.nonzero()[0]) if first < 0 else first
        count += int(bad.sum())
    if count:
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(first), tensor.shape)) if tensor.dim() else ()
        raise DataError(
            "E-CONV-NONFINITE",
            subject,
            f"has {count} values that are NaN or infinite",
            found=f"{float(tensor.reshape(-1)[first])} at {list(index)}",
        )


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, compared piece by piece."""
    import torch

    if one.shape != other.shape:
        return False
    return all(torch.equal(a.float(), b.float()) for (_, a), (_, b) in zip(_chunks(one), _chunks(other), strict=True))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A contiguous tensor's bytes, shared with it."""
    import torch

    if not tensor.numel():
        return memoryview(b"")
    flat: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
