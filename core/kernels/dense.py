"""Products, norms, activations and data movement through torch's own functions. Arguments as in the ops."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.core.ops.activation import ACTIVATIONS

#: Rows of a weight that are widened at a time: the copy stays in the cache instead of doubling the weight in memory.
WIDENED_ROWS = 2048


def add(x: Tensor, y: Tensor, *, out: Tensor) -> None:
    torch.add(x, y, out=out)


def mul(x: Tensor, y: Tensor, *, out: Tensor) -> None:
    torch.mul(x, y, out=out)


def select_rows(x: Tensor, rows: Tensor, *, out: Tensor) -> None:
    torch.index_select(x, 0, rows, out=out)


def embedding(ids: Tensor, weight: Tensor, *, out: Tensor) -> None:
    if weight.dtype is out.dtype:
        torch.index_select(weight, 0, ids, out=out)
    else:
        out.copy_(weight.index_select(0, ids))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def linear_widened(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    """In fp32 whatever the dtype: processors without 16-bit products do those a hundred times slower."""
    wide = x.float()
    for start in range(0, weight.shape[0], WIDENED_ROWS):
        rows = slice(start, start + WIDENED_ROWS)
        product = wide @ weight[rows].float().t()
        out[:, rows] = product if bias is None else product + bias[rows].float()


def logits(x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    if x.dtype is torch.float32:
        torch.mm(x, weight.t(), out=out)
    elif x.device.type != "cpu":
        torch.mm(x, weight.t(), out_dtype=torch.float32, out=out)
    else:
        linear_widened(x, weight, out=out)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    # Five small calls: torch's own rms_norm is composed of twice as many on a processor.
    wide = x.float()
    scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    if out.dtype is torch.float32:
        torch.mul(wide, scale, out=out).mul_(weight)
    else:
        out.copy_((wide * scale).mul_(weight))


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float, *, out: tuple[Tensor, Tensor]) -> None:
    normed, total = out
    torch.add(x, y, out=total)
    rms_norm(total, weight, eps, out=normed)


def gated_activation(gate: Tensor, up: Tensor, kind: str, *, out: Tensor) -> None:
    # In fp32 to the end: one rounding instead of two costs a copy and keeps 16-bit answers near those of fp32.
    out.copy_(ACTIVATIONS[kind](gate.float()).mul_(up))


def sigmoid_gate(x: Tensor, gate: Tensor, *, out: Tensor) -> None:
    out.copy_(gate.float().sigmoid() * x)
