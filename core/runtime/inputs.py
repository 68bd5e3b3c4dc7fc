"""A rank's state of each slot, and from it the input tensors of a step. All of it stays on the device.

S slots · T tokens · N sequences · R rows with logits · P blocks a sequence can have. Slot −1, that of padding, is a row of its
own behind the others: its block table shows nobody's block, so what padding writes has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bestiary.core.program.shapes import Sizes
from bestiary.core.runtime.kv_store import KVStore
from bestiary.core.runtime.messages import Ints, Opened, StepMessage, TableChanges


class SlotState:
    """What the device knows of each slot.

    Attributes:
        last: [S + 1] int64, the token that a decode runs.
        stored: [S + 1] int64, tokens whose keys and values are in the cache, once the steps so far have run.
        prompt: [S + 1] int64, length of the prompt.
        tables: per cache group [S + 1, P] int32.
    """

    def __init__(self, num_slots: int, store: KVStore, max_seq_len: int, device: torch.device) -> None:
        self.last, self.stored, self.prompt = (
            torch.zeros(num_slots + 1, dtype=torch.int64, device=device) for _ in range(3)
        )
        self.tables = [
            torch.full(
                (num_slots + 1, table_width(max_seq_len, group.block_size)),
                group.num_blocks,
                dtype=torch.int32,
                device=device,
            )
            for group in store.groups
        ]

    @property
    def padding(self) -> int:
        """The slot of padding, as an index."""
        return len(self.last) - 1

    def open(self, opened: tuple[Opened, ...]) -> None:
        """Slots changed hands."""
        where = self.device_ints([one.slot for one in opened])
        self.stored[where] = self.device_ints([one.stored for one in opened])
        self.prompt[where] = self.device_ints([one.prompt_length for one in opened])

    def device_ints(self, values: object) -> Tensor:
        """Integers as an int64 tensor on the device."""
        return torch.from_numpy(np.asarray(values, np.int64)).to(self.last.device, non_blocking=True)


class StepInputs:
    """The tensors behind :class:`bestiary.layers.Step`, sized for the largest step, in memory that never moves."""

    def __init__(self, store: KVStore, limits: Sizes, max_seq_len: int, device: torch.device) -> None:
        tokens, sequences, rows, _ = limits
        self.store, self.state = store, SlotState(sequences, store, max_seq_len, device)

        def ints(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._tokens, self._positions, self._lengths, self._owners = (ints(tokens) for _ in range(4))
        self._logit_rows, self._sequences = ints(rows), ints(sequences)
        self._query_starts, self._kv_lengths = (
            ints(sequences + 1, dtype=torch.int32),
            ints(sequences, dtype=torch.int32),
        )
        self._slots = [ints(tokens) for _ in store.groups]
        self._tables = [ints(sequences, table.shape[1], dtype=torch.int32) for table in self.state.tables]
        self._steps = torch.arange(max(tokens, sequences + 1), device=device)
        self._shown: Ints | None = None  # the decoding slots that _sequences holds, if the last step only decoded

    def views(self, sizes: Sizes) -> Mapping[str, Tensor]:
        """The inputs of a step of these sizes, by their names in the program."""
        tokens, sequences, rows, blocks = sizes
        given = {
            "tokens": self._tokens[:tokens],
            "positions": self._positions[:tokens],
            "lengths": self._lengths[:tokens],
            "logit_rows": self._logit_rows[:rows],
            "query_starts": self._query_starts[: sequences + 1],
            "kv_lengths": self._kv_lengths[:sequences],
            **self.store.tensors,
        }
        for group, (slots, tables) in enumerate(zip(self._slots, self._tables, strict=True)):
            given[f"slots.{group}"] = slots[:tokens]
            given[f"block_tables.{group}"] = tables[:sequences, : blocks or None]
        return given

    def write(self, message: StepMessage) -> Sizes:
        """Take in what changed, lay out the step, and return its sizes."""
        self.change(message)
        sizes = Sizes(message.num_tokens, len(message.slots), message.num_rows)
        if message.decodes == len(message.slots):
            self.show_decodes(message.slots)
            self.decode(sizes.sequences)
        else:
            self._mix(message, sizes)
        return sizes

    def change(self, message: StepMessage) -> None:
        """Slots that changed hands, and block tables."""
        if message.opened:
            self.state.open(message.opened)
        for group, changes in enumerate(message.tables):
            if len(changes.blocks) or len(changes.targets) or len(changes.scrubbed):
                self._change_tables(group, changes)

    def _change_tables(self, group: int, changes: TableChanges) -> None:
        ints = self.state.device_ints
        if len(changes.scrubbed):
            self.store.scrub(group, ints(changes.scrubbed))
        if len(changes.targets):
            self.store.copy(group, ints(changes.sources), ints(changes.targets))
        if len(changes.blocks):
            where = (ints(changes.slots), ints(changes.places))
            self.state.tables[group].index_put_(where, ints(changes.blocks).int())

    def show_decodes(self, slots: Ints) -> None:
        """Which slots decode; nothing is sent where they are those of the last step."""
        shown = self._shown
        if shown is slots or (shown is not None and np.array_equal(shown, slots)):
            return
        count = len(slots)
        self._sequences[:count].copy_(torch.from_numpy(slots), non_blocking=True)
        self._query_starts[: count + 1].copy_(self._steps[: count + 1])
        self._logit_rows[:count].copy_(self._steps[:count])
        self._shown = slots

    def decode(self, count: int) -> None:
        """The inputs of the last tokens of the shown slots, from the state alone; the state advances."""
        state, slots = self.state, self._sequences[:count]
        torch.index_select(state.last, 0, slots, out=self._tokens[:count])
        positions = torch.index_select(state.stored, 0, slots, out=self._positions[:count])
        lengths = positions + 1
        self._kv_lengths[:count].copy_(lengths)
        torch.maximum(lengths, state.prompt[slots], out=self._lengths[:count])
        for group, tables in enumerate(self._tables):
            shown = torch.index_select(state.tables[group], 0, slots, out=tables[:count])
            self._slots[group][:count].copy_(self._places(group, shown, self._steps[:count], positions))
        state.stored.index_copy_(0, slots, lengths)
        state.stored[-1:].zero_()

    def _places(self, group: int, tables: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Where each token's key and value go: ``block · S + offset``."""
        size = self.store.groups[group].block_size
        blocks = tables.view(-1)[rows * tables.shape[1] + torch.div(positions, size, rounding_mode="floor")]
        return blocks * size + positions % size

    def _mix(self, message: StepMessage, sizes: Sizes) -> None:
        """Decodes, then chunks of known tokens."""
        self._shown = None
        tokens, count, rows, _ = sizes
        state, decodes = self.state, message.decodes
        starts = np.concatenate(([0], np.cumsum(message.counts)))
        slots, owners = self._sequences[:count], self._owners[:tokens]
        slots.copy_(torch.from_numpy(message.slots), non_blocking=True)
        self._query_starts[: count + 1].copy_(state.device_ints(starts))
        owners.copy_(state.device_ints(np.repeat(np.arange(count), message.counts)))
        self._tokens[decodes:tokens].copy_(torch.from_numpy(message.tokens), non_blocking=True)
        if decodes:
            torch.index_select(state.last, 0, slots[:decodes], out=self._tokens[:decodes])
        stored = state.stored[slots]
        lengths = stored + (self._query_starts[1 : count + 1] - self._query_starts[:count])
        self._kv_lengths[:count].copy_(lengths)
        positions = self._positions[:tokens]
        positions.copy_((stored - self._query_starts[:count])[owners] + self._steps[:tokens])
        torch.maximum(positions + 1, state.prompt[slots][owners], out=self._lengths[:tokens])
        for group, tables in enumerate(self._tables):
            shown = torch.index_select(state.tables[group], 0, slots, out=tables[:count])
            self._slots[group][:tokens].copy_(self._places(group, shown, owners, positions))
        state.stored.index_copy_(0, slots, lengths)
        wanted = starts[1:] - 1 if message.rows is None else message.rows
        self._logit_rows[:rows].copy_(state.device_ints(wanted))


def table_width(max_seq_len: int, block_size: int) -> int:
    """P, the blocks a sequence can have."""
    return -(-max_seq_len // block_size)
