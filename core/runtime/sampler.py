"""From a step's logits to its tokens, the whole batch at once; a row pays only for what its request uses.

In order: ``logit_bias`` is added; tokens that are out for this step (end tokens before ``min_tokens``, repeated n-grams, bad
words) are removed; penalties; ``allowed_token_ids``; logits processors; the grammar's mask; then the argmax where the
temperature is 0, else division by the temperature, ``top_k``, ``top_p``, ``min_p`` and a draw. Each acts on what the one before
left (transformers' order). Log-probabilities are of the logits as the model gave them.

R rows · V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bestiary.core.runtime import logits as rows_of
from bestiary.core.runtime.containment import contained
from bestiary.core.runtime.inputs import SlotState
from bestiary.core.runtime.logprobs import LogprobRows, logprob_rows
from bestiary.core.runtime.looks import RESTRICTIONS, Looks
from bestiary.core.runtime.messages import Bans, History, Ints, Masks, Opened, SampleMessage, SlowCall
from bestiary.core.runtime.random_numbers import uniforms
from bestiary.core.runtime.slot_params import SlotParams
from bestiary.core.runtime.slow_calls import SLOW, described
from bestiary.core.runtime.token_counts import TokenCounts
from bestiary.core.runtime.token_masks import keep_masked, without


class Sampled(NamedTuple):
    """A step's results on the device: tokens [n] int64, -1 where there is none; log-probabilities of the rows that asked;
    prompt log-probabilities by :class:`Scored`; what a row's logits processor raised, and which of them took long; what is
    to be blamed for a row without a token."""

    tokens: Tensor
    logprobs: LogprobRows | None
    scored: tuple[LogprobRows, ...]
    errors: dict[int, str]
    slow_calls: list[SlowCall]
    looks: Looks


class _Trouble(NamedTuple):
    """What logits processors did to the step."""

    errors: dict[int, str]
    slow_calls: list[SlowCall]
    looks: Looks


class Sampler:
    """Chooses tokens. What each slot asks for stays on the device.

    Args:
        state: of the slots; the chosen tokens become their last ones.
        processor: the function of a registered logits processor's name.
    """

    def __init__(self, state: SlotState, processor: Callable[[str], Callable[..., Tensor]]) -> None:
        self._state, self._processor = state, processor
        self._params = SlotParams(len(state.last), state.last.device)
        self._counts = TokenCounts(state.last.device)

    def open(self, opened: tuple[Opened, ...]) -> None:
        """Slots changed hands."""
        for one in opened:
            self._params.set(one.slot, one.params)
            self._counts.open(one)

    def sample(self, logits: Tensor, wanted: SampleMessage) -> Sampled:
        """Tokens and log-probabilities of a step.

        Args:
            logits: [rows of the step, V] fp32; left as they are.
        """
        rows = logits if wanted.rows is None else logits[self._ids(wanted.rows)]
        trouble = _Trouble({}, [], Looks())
        tokens = rows_of.likeliest(rows) if wanted.plain else self._tokens(rows, wanted, trouble)
        self._counts.add(wanted.slots, tokens)
        self.chose(wanted, tokens)
        return Sampled(tokens, self._logprobs(rows, tokens, wanted), self._scores(logits, wanted), *trouble)

    def chose(self, wanted: SampleMessage, tokens: Tensor) -> None:
        """These are the slots' last tokens now."""
        self._state.last.index_copy_(0, self._ids(wanted.slots), tokens.clamp(min=0))

    def _tokens(self, rows: Tensor, wanted: SampleMessage, trouble: _Trouble) -> Tensor:
        other = self._other(wanted)
        if len(other) == len(rows):
            return self._processed_tokens(rows, wanted.slots, other, wanted, trouble)
        tokens = rows_of.likeliest(rows)
        if len(other):
            where = self._ids(other)
            found = self._processed_tokens(rows[where], wanted.slots[other], other, wanted, trouble)
            tokens.index_copy_(0, where, found)
        return tokens

    def _other(self, wanted: SampleMessage) -> Ints:
        """The rows whose token is not simply the likeliest."""
        other = self._params.changes[wanted.slots].copy()
        for part in (wanted.bans, wanted.allowed, wanted.guided):
            if part is not None:
                other[part.rows] = True
        other[[history.row for history in wanted.histories]] = True
        return other.nonzero()[0].astype(np.int32)

    def _processed_tokens(
        self, logits: Tensor, slots: Ints, rows: Ints, wanted: SampleMessage, trouble: _Trouble
    ) -> Tensor:
        """One token a row. logits [r, V] of the sampling rows ``rows`` [r]."""
        place = np.full(len(wanted.slots), -1, np.int32)
        place[rows] = np.arange(len(rows))
        if wanted.bans or wanted.allowed or wanted.guided or wanted.histories:
            trouble.looks.begin(rows.tolist(), logits)
        logits = self._removed(self._params.biased(logits, slots), place, wanted.bans)
        logits = self._counts.penalized(logits, slots, self._params)
        logits = self._kept(logits, place, wanted.allowed)
        logits = self._by_processors(logits, place, slots, wanted.histories, trouble)
        logits = self._kept(logits, place, wanted.guided)
        drawn = self._params.drawn[slots].nonzero()[0]
        if not len(drawn):
            return rows_of.likeliest(logits)
        if len(drawn) == len(slots):
            return self._draw(logits, slots)
        tokens = rows_of.likeliest(logits)
        where = self._ids(drawn)
        return tokens.index_copy_(0, where, self._draw(logits[where], slots[drawn]))

    def _removed(self, logits: Tensor, place: Ints, bans: Bans | None) -> Tensor:
        return logits if bans is None else without(logits, self._ids(place[bans.rows]), self._ids(bans.tokens))

    def _kept(self, logits: Tensor, place: Ints, masks: Masks | None) -> Tensor:
        if masks is None:
            return logits
        bits = torch.from_numpy(masks.allowed).to(logits.device, non_blocking=True)
        return keep_masked(logits, bits, self._ids(place[masks.rows]))

    def _by_processors(
        self, logits: Tensor, place: Ints, slots: Ints, histories: tuple[History, ...], trouble: _Trouble
    ) -> Tensor:
        """Each row through its request's own functions; what one raises ends its row only."""
        if histories:
            logits = logits.clone()
        for history in histories:
            row = int(place[history.row])
            trouble.looks.after(history.row, RESTRICTIONS, logits[row])
            prompt, output = history.prompt.tolist(), history.output.tolist()
            run: Callable[..., Tensor] | None = None
            try:
                for given in self._params.processors[int(slots[row])]:
                    run = self._processor(given) if isinstance(given, str) else given
                    with _timed(run, history.row, trouble):
                        made = run(prompt.copy(), output.copy(), logits[row].clone())  # each its own to spoil
                    _check_logits(made, logits.shape[-1])
                    logits[row] = made
                    trouble.looks.after(history.row, described(run), logits[row])
            except BaseException as error:
                contained(error)
                trouble.errors[history.row] = f"{described(run)}: {type(error).__name__}: {error}"
                logits[row] = torch.nan
        return logits

    def _draw(self, logits: Tensor, slots: Ints) -> Tensor:
        """[R] tokens of rows with a temperature."""
        params, where = self._params, self._ids(slots)
        temperature, top_p, min_p = params.numbers[where, :3].unbind(1)
        scaled = logits / temperature.float().unsqueeze(1)
        kept = rows_of.keep_top(scaled, params.top_k[where], top_p, params.limits(slots))
        number = uniforms(params.seeds[where], self._state.stored[where] - self._state.prompt[where])
        return rows_of.draw(kept, min_p.unsqueeze(1), number.unsqueeze(1))

    def _logprobs(self, rows: Tensor, tokens: Tensor, wanted: SampleMessage) -> LogprobRows | None:
        if wanted.logprobs is None:
            return None
        asked = (wanted.logprobs >= 0).nonzero()[0]
        most = int(wanted.logprobs.max())
        if len(asked) == len(rows):
            return logprob_rows(rows, tokens, most)
        where = self._ids(asked)
        return logprob_rows(rows[where], tokens[where], most)

    def _scores(self, logits: Tensor, wanted: SampleMessage) -> tuple[LogprobRows, ...]:
        return tuple(
            logprob_rows(logits[one.first : one.first + len(one.targets)], self._ids(one.targets), one.best)
            for one in wanted.scored
        )

    def _ids(self, values: object) -> Tensor:
        return self._state.device_ints(values)


@contextmanager
def _timed(run: Callable[..., Tensor], row: int, trouble: _Trouble) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        taken = time.perf_counter() - began
        if taken >= SLOW:
            trouble.slow_calls.append(SlowCall(row, described(run), taken))


def _check_logits(made: object, vocab_size: int) -> None:
    """What a logits processor returned is logits, [V] of real numbers. Raises TypeError."""
    if not isinstance(made, Tensor) or made.shape != (vocab_size,):
        raise TypeError(f"it returned {_shape(made)}, not logits [{vocab_size}]")
    if made.dtype == torch.bool or made.is_complex():
        raise TypeError(f"it returned numbers of {made.dtype}, not logits")
    if made.is_meta or made.layout != torch.strided:
        raise TypeError(f"it returned a tensor of {'no data' if made.is_meta else made.layout}, not dense logits")


def _shape(made: object) -> str:
    return f"a tensor of shape {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
