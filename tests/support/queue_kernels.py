"""Kernels that carry what crosses a pipeline border within one process: ``Ranks.group`` is a deque, not a process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bestiary import Kernel, hookimpl

#: For ``kernels=`` of an engine.
CHOSEN = {"send": "queue", "receive": "queue"}


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    for op in CHOSEN:
        register(Kernel(op=op, name="queue", run=f"queue_kernels:{op}"))


def send(x: Tensor, ranks: Any) -> None:
    ranks.group.append(x.clone())


def receive(like: Tensor, features: tuple[int, ...], dtype: torch.dtype, ranks: Any, *, out: Tensor) -> None:
    arrived = ranks.group.popleft()
    assert arrived.shape == (len(like), *features)
    assert arrived.dtype == dtype
    out.copy_(arrived)
