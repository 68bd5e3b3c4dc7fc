"""Who left a row without a token: the model, one of the request's logits processors, or its restrictions.

Rows of logits are looked at as the model gave them and after each processor. What was seen stays on the device until a token
is missing, so nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RESTRICTIONS: Final = "its own restrictions (grammar, bans, allowed tokens)"


class Looks:
    """Of one step."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []
        self._names: dict[int, list[tuple[int, str]]] = {}  # sampling row → places in what was found, and after what
        self._raw: dict[int, int] = {}
        self._count = 0

    def begin(self, rows: Sequence[int], logits: Tensor) -> None:
        """The sampling rows' logits [r, V], as the model gave them."""
        self._raw = {row: self._count + at for at, row in enumerate(rows)}
        self._see(logits)

    def after(self, row: int, name: str, logits: Tensor) -> None:
        """A row's logits [V], as ``name`` left them."""
        self._names.setdefault(row, []).append((self._count, name))
        self._see(logits.unsqueeze(0))

    def fine(self) -> list[Tensor]:
        """[c] bool in all, whether each look saw a finite maximum."""
        return [torch.isfinite(torch.cat(self._found))] if self._found else []

    def causes(self, rows: Sequence[int], fine: npt.NDArray[np.bool_]) -> dict[int, str]:
        """What is to be blamed for the rows that have no token, by row; the model's own are not in it."""
        found = {}
        for row in rows:
            if row in self._raw and fine[self._raw[row]]:
                name = next((name for at, name in self._names.get(row, ()) if not fine[at]), RESTRICTIONS)
                found[row] = (
                    f"{name}: no token is left"
                    if name == RESTRICTIONS
                    else f"{name}: its logits have no finite maximum"
                )
        return found

    def _see(self, logits: Tensor) -> None:
        self._found.append(logits.amax(dim=-1))
        self._count += len(logits)
