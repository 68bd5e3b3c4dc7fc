"""Kernels that are right for most numbers of rows, and say that they are right for all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bestiary import Kernel, hookimpl

#: More rows than a request of the conformance kit has in a step by itself.
MANY = 25
#: The rows of a full step of the kit's engines that compute in pieces.
FULL = 9


def _norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, *, wrong: bool) -> None:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.float()
    out.copy_(normed * (1.01 if wrong else 1.0))


def wrong_with_many(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    _norm(x, weight, eps, out, wrong=x.shape[0] >= MANY)


def wrong_when_full(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    _norm(x, weight, eps, out, wrong=x.shape[0] == FULL)


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    for run in (wrong_with_many, wrong_when_full):
        name = run.__name__
        register(Kernel(op="rms_norm", name=name, run=f"{__name__}:{name}", batch_invariant=True))
