"""What the numbers are made of: two sides' logits over the same tokens. T tokens · V vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

_ROWS = 16  # whose distributions are held in float64 at a time: what a processor's cache takes


@dataclass
class Rows:
    """Of each predicted token, over all windows; natural logarithms.

    Attributes:
        window, place: where the predicted token stands: in which window, at which of its places.
        ours, reference: the log-probability that each side gives to the token of the text.
        divergence: KL(reference ‖ ours) of the distributions.
        our_choice, reference_choice: each side's likeliest token.
        our_best, reference_best: the log-probabilities of those.
    """

    window: list[Tensor] = field(default_factory=list)
    place: list[Tensor] = field(default_factory=list)
    ours: list[Tensor] = field(default_factory=list)
    reference: list[Tensor] = field(default_factory=list)
    divergence: list[Tensor] = field(default_factory=list)
    our_choice: list[Tensor] = field(default_factory=list)
    reference_choice: list[Tensor] = field(default_factory=list)
    our_best: list[Tensor] = field(default_factory=list)
    reference_best: list[Tensor] = field(default_factory=list)

    def add(self, window: int, tokens: list[int], ours: Tensor, reference: Tensor, first: int = 1) -> None:
        """Take in a window.

        Args:
            tokens: of the window.
            ours, reference: logits [T, V] before each of the tokens that are predicted.
            first: place of the first of these, T before the window's end.
        """
        targets = torch.tensor(tokens[first:])
        count = len(targets)
        # Made before the distributions: small tensors between these would keep their memory from being used again.
        self.window.append(torch.full((count,), window))
        self.place.append(torch.arange(count) + first)
        chosen = [torch.empty(count, dtype=torch.int64) for _ in range(2)]
        found = [torch.empty(count, dtype=torch.float64) for _ in range(5)]
        for start in range(0, count, _ROWS):
            rows = slice(start, min(start + _ROWS, count))
            q = torch.log_softmax(ours[rows].double(), -1)
            p = torch.log_softmax(reference[rows].double(), -1)
            wanted = targets[rows, None]
            found[0][rows], found[1][rows] = q.gather(1, wanted)[:, 0], p.gather(1, wanted)[:, 0]
            found[2][rows] = _divergence(p, q)
            found[3][rows], chosen[0][rows] = q.max(-1)
            found[4][rows], chosen[1][rows] = p.max(-1)
        floats = (self.ours, self.reference, self.divergence, self.our_best, self.reference_best)
        for kept, made in zip((*floats, self.our_choice, self.reference_choice), (*found, *chosen), strict=True):
            kept.append(made)

    def column(self, name: str) -> Tensor:
        """[tokens] float64 or int64: one of the attributes, over all windows."""
        parts: list[Tensor] = getattr(self, name)
        return torch.cat(parts)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Σ p (log p − log q); a token that both call impossible adds nothing."""
    terms = p.exp() * (p - q)
    return torch.where(p == -math.inf, torch.zeros_like(terms), terms).sum(-1)


def mean(values: Tensor) -> tuple[float, float]:
    """The mean, and its standard error; NaN where one value does not say."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927).

    >>> tuple(round(bound, 4) for bound in wilson(97, 100))
    (0.9155, 0.9897)
    """
    z = 1.959963984540054
    share, scale = successes / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
