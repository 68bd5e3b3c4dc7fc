"""How a layer's weights divide among tensor-parallel ranks: declared by the layer, carried out by the build."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Replicated:
    """Every rank has the whole weight."""


@dataclass(frozen=True)
class Column:
    """Each rank has some of the output features. ``units`` can't be cut further: heads, or single features.

    With fewer units than ranks (key-value heads), neighbouring ranks hold the same unit.
    """

    units: int


@dataclass(frozen=True)
class Row:
    """Each rank has some of the input features and the results are summed."""

    units: int


@dataclass(frozen=True)
class Vocabulary:
    """Each rank has some of the vocabulary's rows: lookups are summed, logits gathered."""


@dataclass(frozen=True)
class Experts:
    """Each rank has some of the ``units`` features between an expert's two products, of every expert; results are summed."""

    units: int


Shard = Replicated | Column | Row | Vocabulary | Experts
