"""What the host tells the ranks of an engine about a step, and what they answer: plain data, no tensors, no torch.

A rank keeps the state of each slot on its device (last token, stored length, block tables, sampling parameters, token
counts), so a message carries only what the device cannot know: who runs, prompts, and what changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from bestiary.core.token_params import TokenParams

Ints = npt.NDArray[np.int32]

EMPTY: Ints = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Opened:
    """A request took a slot; whatever the slot held before is over.

    Args:
        slot: which.
        stored: leading tokens whose keys and values its blocks already hold.
        prompt_length: of its tokens.
        tokens: prompt and output so far; the last is what a decode at ``stored`` runs.
        params: how its tokens are chosen.
    """

    slot: int
    stored: int
    prompt_length: int
    tokens: Ints
    params: TokenParams


class TapRows(NamedTuple):
    """The packed tokens ``first … stop`` are those of a request that keeps the tensors of these names."""

    first: int
    stop: int
    names: tuple[str, ...]


class TableChanges(NamedTuple):
    """Changes of one cache group: ``tables[slots, places] = blocks``, after the blocks ``sources`` are copied to ``targets``
    and the blocks ``scrubbed`` are filled with zeros (in the order scrub, copy)."""

    slots: Ints
    places: Ints
    blocks: Ints
    sources: Ints
    targets: Ints
    scrubbed: Ints


@dataclass(frozen=True, slots=True)
class StepMessage:
    """One packed step: ``decodes`` sequences of one token each, which every rank knows, then chunks of known tokens.

    Args:
        number: of the step, counted from 1.
        slots: [N] the slot of each sequence, in packed order.
        counts: [N] how many of its tokens run.
        decodes: how many leading sequences run their slot's last token.
        tokens: the ids of the other sequences' tokens, packed.
        rows: [R] which of the T packed tokens get logits, ascending; None: the last token of every sequence.
        opened: slots that changed hands, before the step runs.
        tables: per cache group the changes of the block tables.
        longest: most tokens any of the sequences has after the step.
        taps: the tensors that some of the requests keep.
    """

    number: int
    slots: Ints
    counts: Ints
    decodes: int
    tokens: Ints
    rows: Ints | None
    opened: tuple[Opened, ...]
    tables: tuple[TableChanges, ...]
    longest: int
    taps: tuple[TapRows, ...] = ()

    @property
    def num_tokens(self) -> int:
        """T, the tokens that run."""
        return self.decodes + len(self.tokens)

    @property
    def num_rows(self) -> int:
        """R, rows of logits."""
        return len(self.slots) if self.rows is None else len(self.rows)


class Masks(NamedTuple):
    """Which tokens some rows may take: bit ``v % 32`` of word ``v // 32`` of ``allowed [k, ceil(V / 32)]`` for token v."""

    rows: Ints
    allowed: Ints


class Bans(NamedTuple):
    """Tokens that some rows may not take: ``logits[rows[i], tokens[i]] = -inf``."""

    rows: Ints
    tokens: Ints


class History(NamedTuple):
    """What a row's logits processors may see: the prompt and the output so far."""

    row: int
    prompt: Ints
    output: Ints


class Scored(NamedTuple):
    """Prompt log-probabilities: rows ``first … first + len(targets)`` of the step's logits, with ``best`` likeliest each."""

    first: int
    targets: Ints
    best: int


@dataclass(frozen=True, slots=True)
class SampleMessage:
    """What to choose from the logits of the step that was forwarded last. Sampling rows are numbered 0 … n - 1.

    Args:
        slots: [n] whose tokens are chosen.
        rows: [n] their rows of the step's logits; None: row i is i.
        plain: every row takes its likeliest token and nothing else is asked.
        bans: tokens that are out for this step only.
        allowed: rows with a fixed set of tokens.
        histories: rows with logits processors.
        guided: rows whose grammar allows some tokens only.
        logprobs: [n] how many likeliest tokens to report besides the chosen one, -1 for rows that ask for none; None: none do.
        scored: prompt log-probabilities.
    """

    slots: Ints
    rows: Ints | None = None
    plain: bool = True
    bans: Bans | None = None
    allowed: Masks | None = None
    histories: tuple[History, ...] = ()
    guided: Masks | None = None
    logprobs: Ints | None = None
    scored: tuple[Scored, ...] = ()


class Logprobs(NamedTuple):
    """Of n rows: the chosen token's log-probability and rank (1 is the likeliest), and the k likeliest tokens with theirs."""

    chosen: npt.NDArray[np.float32]
    ranks: Ints
    ids: Ints
    values: npt.NDArray[np.float32]


class SlowCall(NamedTuple):
    """A logits processor of a sampling row took long: which, with its distribution, and how many seconds."""

    row: int
    plugin: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SampledMessage:
    """A step's results.

    Args:
        tokens: [n] the chosen tokens; -1 for a row whose logits had no finite maximum, or that is in ``errors``.
        logprobs: of the rows that asked, in their order.
        scored: one for each :class:`Scored`.
        errors: sampling row → what a logits processor of its request raised.
        slow_calls: of logits processors.
        taps: one for each of the step's :class:`TapRows`: by name ``[stop - first, …]``.
    """

    tokens: Ints
    logprobs: Logprobs | None = None
    scored: tuple[Logprobs, ...] = ()
    errors: dict[int, str] = field(default_factory=dict)
    slow_calls: tuple[SlowCall, ...] = ()
    taps: tuple[dict[str, npt.NDArray[Any]], ...] = ()
