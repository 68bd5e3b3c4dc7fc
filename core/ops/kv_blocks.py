"""Keys and values of few bits in blocks of bytes: views of codes and scales, and the arithmetic between them and numbers.

B blocks · S block size · K key-value heads · D head size · C bytes of a head's codes. The layout is
:class:`~bestiary.core.kv_format.BlockFormat`'s. Each token's head is rounded by itself, to the nearest, ties to even:

- int8: ``x ≈ scale · code``, codes −127 … 127, ``scale = max|x| / 127`` in fp32.
- fp8: the same with codes in e4m3, ``scale = max|x| / 448``.
- int4: ``x ≈ scale · code + minimum``, codes 0 … 15 with feature 2i in a byte's low half, ``minimum = min x`` and
  ``scale = (max x − min x) / 15``, both in fp16.

These quotients are products with the divisor's reciprocal in fp32, as torch computes them on every device; codes come from true
quotients by the scale.

With a fixed scale what lies beyond the codes takes the nearest one; the minimum of int4 is then ``−8 · scale``. A head of zeros
has the scale 0. A head with a value that is not finite has a scale of NaN, and is NaN when it is read, whatever its codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bestiary.core.kv_format import SCALE_BYTES, BlockFormat

#: What a cache stores: elements of a dtype, or bytes of one of :data:`~bestiary.core.kv_format.KINDS`.
CacheDtype = torch.dtype | str

#: The largest code of the kinds whose codes lie on both sides of zero.
LARGEST = {"int8": 127.0, "fp8": 448.0}
_LEVELS = 15  # steps between the smallest and the largest code of int4
_MIDDLE = 8  # the code of zero, where int4's scale is fixed
_FP16 = torch.finfo(torch.float16).max


def block_shape(dtype: CacheDtype, block_size: int, heads: int, size: int) -> tuple[int, ...]:
    """Of one block: ``(S, K, D)`` elements, or so many bytes."""
    if isinstance(dtype, str):
        return (BlockFormat(dtype, block_size, heads, size).nbytes,)
    return (block_size, heads, size)


def element(dtype: CacheDtype) -> torch.dtype:
    """Dtype of the cache's tensor."""
    return torch.uint8 if isinstance(dtype, str) else dtype


def codes_of(blocks: Tensor, form: BlockFormat) -> Tensor:
    """View of blocks ``[B, bytes]`` uint8 as codes ``[B, S, K, C]`` uint8."""
    taken = form.block_size * form.heads * form.code_bytes
    return blocks[:, :taken].view(len(blocks), form.block_size, form.heads, form.code_bytes)


def scales_of(blocks: Tensor, form: BlockFormat) -> Tensor:
    """View of blocks ``[B, bytes]`` uint8 as scales ``[B, S, K]`` float32, of int4 as scales and minima ``[B, S, K, 2]``
    float16."""
    found = blocks[:, form.scales_at : form.scales_at + form.block_size * form.heads * SCALE_BYTES]
    if form.kind == "int4":
        return found.view(torch.float16).view(len(blocks), form.block_size, form.heads, 2)
    return found.view(torch.float32).view(len(blocks), form.block_size, form.heads)


def quantize(x: Tensor, kind: str, fixed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Keys or values ``[…, K, D]`` → codes ``[…, K, C]`` uint8 and scales ``[…, K]`` float32 (int4: ``[…, K, 2]`` float16).

    Args:
        fixed: ``[K]``, each head's scale in place of one that its own values give.
    """
    wide = x.float()
    if kind == "int4":
        return _quantize_4(wide, fixed)
    largest = wide.abs().amax(-1)
    scale = largest * (1 / LARGEST[kind]) if fixed is None else fixed.float()
    scale = torch.where(largest.isfinite(), scale, torch.nan)
    codes = _bounded(wide / torch.where(scale > 0, scale, 1.0).unsqueeze(-1), -LARGEST[kind], LARGEST[kind])
    narrow = codes.round_().to(torch.int8) if kind == "int8" else codes.to(torch.float8_e4m3fn)
    return narrow.view(torch.uint8), scale


def _quantize_4(wide: Tensor, fixed: Tensor | None) -> tuple[Tensor, Tensor]:
    low, high = wide.amin(-1), wide.amax(-1)
    if fixed is None:
        scale, minimum = (high - low) * (1 / _LEVELS), low
    else:
        scale = fixed.float().expand_as(low)
        minimum = -_MIDDLE * scale
    finite = low.isfinite() & high.isfinite()
    pair = torch.stack((scale, minimum), -1).clamp_(-_FP16, _FP16)
    scales = torch.where(finite.unsqueeze(-1), pair, torch.nan).to(torch.float16)
    step, lowest = scales.float().unsqueeze(-2).unbind(-1)
    codes = _bounded((wide - lowest).div_(torch.where(step > 0, step, 1.0)), 0, _LEVELS).round_().to(torch.uint8)
    if codes.shape[-1] % 2:
        codes = F.pad(codes, (0, 1))
    return codes[..., ::2] | (codes[..., 1::2] << 4), scales


def _bounded(ratios: Tensor, low: float, high: float) -> Tensor:
    """In place: within the codes, and 0 where it is no number."""
    return ratios.clamp_(low, high).nan_to_num_(nan=0.0)


def dequantize(codes: Tensor, scales: Tensor, kind: str, size: int) -> Tensor:
    """The inverse of :func:`quantize`: ``[…, K, D]`` float32; ``size`` is D."""
    if kind == "int8":
        return codes.view(torch.int8).float().mul_(scales.unsqueeze(-1))
    if kind == "fp8":
        return codes.view(torch.float8_e4m3fn).float().mul_(scales.unsqueeze(-1))
    both = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)[..., :size]
    step, minimum = scales.float().unsqueeze(-2).unbind(-1)
    return both.float().mul_(step).add_(minimum)


def numbers_of(blocks: Tensor, form: BlockFormat) -> Tensor:
    """What blocks ``[B, bytes]`` hold: ``[B, S, K, D]`` float32."""
    return dequantize(codes_of(blocks, form), scales_of(blocks, form), form.kind, form.size)


def blocks_of(x: Tensor, kind: str) -> Tensor:
    """Keys or values ``[B, S, K, D]`` as blocks ``[B, bytes]`` uint8."""
    form = BlockFormat(kind, *x.shape[1:])
    blocks = x.new_zeros(x.shape[0], form.nbytes, dtype=torch.uint8)
    codes, scales = quantize(x, kind)
    codes_of(blocks, form).copy_(codes)
    scales_of(blocks, form).copy_(scales)
    return blocks
