"""Tensors between canary bands: what is written beside them, in front, behind or between their rows, is seen."""

from __future__ import annotations

import torch
from torch import Tensor

#: What surrounds inputs: NaN in every float dtype, −1 as an integer. A kernel that reads past its input gets NaN.
AROUND_INPUTS = 0xFF
#: What surrounds results and what a call changes in place: another pattern, so that copying a band is seen too.
AROUND_RESULTS = 0xA5
#: What a result holds before it is written.
UNWRITTEN = 0xFF

_LEAST, _MOST = 2**14, 2**20  # bytes of a band


class Banded:
    """A tensor of its own memory with a band on either side.

    Args:
        shape, stride: of the tensor; what lies between its rows belongs to the bands.
        around: byte that the bands are made of.
        shift: elements by which it begins after a multiple of 64 bytes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        *,
        around: int,
        shift: int = 0,
    ) -> None:
        item = dtype.itemsize
        self._span = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if 0 not in shape else 0
        band = min(max(_LEAST, self._span * item), _MOST) // item // 64 * 64
        self._first = band + shift
        count = self._first + self._span + band
        byte = 1 if dtype is torch.bool else around
        self._memory = torch.full((count * item,), byte, dtype=torch.uint8, device=device)
        self.tensor = self._memory.view(dtype).as_strided(shape, stride, self._first)
        self._kept = self._memory

    @classmethod
    def copy(cls, tensor: Tensor, *, around: int) -> Banded:
        """The tensor's values with its strides and its alignment."""
        shift = tensor.data_ptr() % 64 // tensor.dtype.itemsize if tensor.numel() else 0
        made = cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device, around=around, shift=shift)
        made.put(tensor)
        return made

    @classmethod
    def unwritten(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Banded:
        """Memory for a result, contiguous as a build's, in which what is left unwritten shows."""
        stride = torch.empty(shape, device="meta").stride()
        made = cls(shape, stride, dtype, device, around=AROUND_RESULTS)
        if made.tensor.numel():
            made.tensor.view(-1).view(torch.uint8).fill_(1 if dtype is torch.bool else UNWRITTEN)
        made.keep()
        return made

    def put(self, tensor: Tensor) -> None:
        """Give it the values of a tensor that is laid out like it, and remember everything as it then is."""
        if any(step == 0 and n > 1 for n, step in zip(tensor.shape, tensor.stride(), strict=True)):
            flat = tensor.as_strided((self._span,), (1,))  # rows that share memory
            self.tensor.as_strided((self._span,), (1,)).copy_(flat)
        else:
            self.tensor.copy_(tensor)
        self.keep()

    def restore(self) -> None:
        """Make everything what it was at :meth:`keep`."""
        self._memory.copy_(self._kept)

    def keep(self) -> None:
        """Remember everything as it is now."""
        self._kept = self._memory.clone()

    def change_outside(self) -> str | None:
        """Where memory beside the tensor changed since :meth:`keep`, in words; None if it did not."""
        changed = self._changed()
        changed.as_strided(self.tensor.shape, self.tensor.stride(), self._first).fill_(False)
        places = changed.nonzero()
        if not len(places):
            return None
        first, last = int(places[0]) - self._first, int(places[-1]) - self._first - self._span
        count = "1 element" if len(places) == 1 else f"{len(places)} elements"
        if last >= 0:
            return f"{count}, up to {last + 1} after its end"
        return f"{count}, the first {-first} before its beginning" if first < 0 else f"{count} between its rows"

    def change_inside(self) -> tuple[int, ...] | None:
        """The index of the first element of the tensor that changed since :meth:`keep`."""
        changed = self._changed().as_strided(self.tensor.shape, self.tensor.stride(), self._first)
        places = changed.nonzero()
        return tuple(int(index) for index in places[0]) if len(places) else None

    def _changed(self) -> Tensor:
        item = self.tensor.dtype.itemsize
        return (self._memory != self._kept).view(-1, item).any(1)


def bits(tensor: Tensor) -> Tensor:
    """The elements as bytes, ``[numel, itemsize]``: equal where they are the same to the bit, NaN too."""
    return tensor.contiguous().view(-1).view(torch.uint8).view(-1, tensor.dtype.itemsize)


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same to the bit."""
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(bits(first), bits(second))
