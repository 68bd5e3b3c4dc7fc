"""Steps put together by hand, and what an engine makes of them: the program alone, without a scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from bestiary.core.engine.load import LoadedEngine
from bestiary.core.resolve_params import resolve
from bestiary.core.runtime.messages import EMPTY, Opened, StepMessage, TableChanges
from bestiary.core.sampling_params import SamplingParams

_GREEDY = resolve(SamplingParams(temperature=0.0, max_tokens=1), vocab_size=2).for_ranks


def opened(slot: int, tokens: Sequence[int], *, stored: int = 0) -> Opened:
    """A request outside of any scheduler takes a slot; ``stored`` of its tokens are in the cache already."""
    return Opened(slot, stored, len(tokens), np.array(tokens, np.int32), _GREEDY)


def step(
    *chunks: tuple[int, Sequence[int]],
    decodes: Sequence[int] = (),
    new: Sequence[Opened] = (),
    blocks: Mapping[int, Sequence[Sequence[int]]] | None = None,
    rows: Sequence[int] | None = None,
) -> StepMessage:
    """A step: the last tokens of some slots, then chunks of (slot, tokens).

    Args:
        blocks: slots' block tables, one for each cache group.
        rows: which of the step's tokens get logits; None: the last of each slot.
    """
    tables = blocks or {}
    groups = max((len(of_slot) for of_slot in tables.values()), default=0)
    changes = []
    for group in range(groups):
        placed = [(slot, place, block) for slot, t in tables.items() for place, block in enumerate(t[group])]
        slots, places, ids = np.array(placed, np.int32).reshape(-1, 3).T
        changes.append(TableChanges(slots, places, ids, EMPTY, EMPTY, EMPTY))
    taken = [token for _, tokens in chunks for token in tokens]
    return StepMessage(
        1,
        np.array([*decodes, *(slot for slot, _ in chunks)], np.int32),
        np.array([1] * len(decodes) + [len(tokens) for _, tokens in chunks], np.int32),
        len(decodes),
        np.array(taken, np.int32),
        None if rows is None else np.array(rows, np.int32),
        tuple(new),
        tuple(changes),
        0,
    )


def whole(tokens: Sequence[int], *blocks: Sequence[int], prompt_length: int | None = None) -> StepMessage:
    """All tokens of a request in one step, in the blocks given for each cache group, with logits for each."""
    fresh = opened(0, tokens)
    if prompt_length is not None:
        fresh = replace(fresh, prompt_length=prompt_length)
    return step((0, tokens), new=[fresh], blocks={0: blocks}, rows=range(len(tokens)))


def logits(engine: LoadedEngine, message: StepMessage) -> Tensor:
    """Of a step's rows, [R, V]; a copy, which the next step leaves alone."""
    return engine.runner.forward(message)["logits"].clone()
