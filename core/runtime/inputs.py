"""From a batch to the step's input tensors: fixed memory, into which the host writes what changed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bestiary.core.program.shapes import Sizes
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.kv_store import KVStore
from bestiary.core.runtime.request import Request


class _Field:
    """One input: an array on the host and its tensor on the device (the same memory where the device is the host)."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        on_host = device.type == "cpu"
        staging = torch.zeros(shape, dtype=dtype, pin_memory=not on_host)
        self.array: npt.NDArray[np.int64] = staging.numpy()
        self._staging = staging
        self.tensor = staging if on_host else torch.zeros(shape, dtype=dtype, device=device)

    def send(self, count: int) -> None:
        if self.tensor is not self._staging:
            self.tensor[:count].copy_(self._staging[:count], non_blocking=True)


class StepInputs:
    """The tensors behind :class:`bestiary.layers.Step`, sized for the largest step."""

    def __init__(self, store: KVStore, limits: Sizes, max_seq_len: int, device: torch.device) -> None:
        tokens, sequences, rows = limits
        self._store = store
        self._tokens = _Field((tokens,), torch.int64, device)
        self._positions = _Field((tokens,), torch.int64, device)
        self._lengths = _Field((tokens,), torch.int64, device)
        self._logit_rows = _Field((rows,), torch.int64, device)
        self._query_starts = _Field((sequences + 1,), torch.int32, device)
        self._kv_lengths = _Field((sequences,), torch.int32, device)
        self._slots = [_Field((tokens,), torch.int64, device) for _ in store.groups]
        self._tables = [
            _Field((sequences, table_width(max_seq_len, group.block_size)), torch.int32, device)
            for group in store.groups
        ]
        # Whose blocks, and how many of them, each row of the tables shows.
        self._shown: list[tuple[Request | None, int]] = [(None, 0)] * sequences

    def views(self, sizes: Sizes) -> Mapping[str, Tensor]:
        """The inputs of a step of these sizes, by their names in the program."""
        tokens, sequences, rows = sizes
        given = {
            "tokens": self._tokens.tensor[:tokens],
            "positions": self._positions.tensor[:tokens],
            "lengths": self._lengths.tensor[:tokens],
            "logit_rows": self._logit_rows.tensor[:rows],
            "query_starts": self._query_starts.tensor[: sequences + 1],
            "kv_lengths": self._kv_lengths.tensor[:sequences],
            **self._store.tensors,
        }
        for group, (slots, tables) in enumerate(zip(self._slots, self._tables, strict=True)):
            given[f"slots.{group}"] = slots.tensor[:tokens]
            given[f"block_tables.{group}"] = tables.tensor[:sequences]
        return given

    def write(self, batch: Batch) -> Sizes:
        """Write a batch into the inputs and return the step's sizes."""
        token = row = 0
        for n, segment in enumerate(batch.segments):
            request, start, count = segment.request, segment.start, segment.count
            self._show_blocks(n, request)
            if count == 1:
                self._write_one(token, request, start)
            else:
                self._write_chunk(token, request, start, count)
            for offset in segment.rows:
                self._logit_rows.array[row] = token + offset
                row += 1
            token += count
            self._query_starts.array[n + 1] = token
            self._kv_lengths.array[n] = start + count
        sizes = Sizes(token, len(batch.segments), row)
        self._send(sizes)
        return sizes

    def _write_one(self, token: int, request: Request, position: int) -> None:
        self._tokens.array[token] = request.tokens[position]
        self._positions.array[token] = position
        self._lengths.array[token] = max(request.prompt_length, position + 1)
        for group, blocks, slots in zip(self._store.groups, request.blocks, self._slots, strict=True):
            place, offset = divmod(position, group.block_size)
            slots.array[token] = blocks[place] * group.block_size + offset

    def _write_chunk(self, token: int, request: Request, start: int, count: int) -> None:
        here = slice(token, token + count)
        positions = np.arange(start, start + count)
        self._tokens.array[here] = request.tokens[start : start + count]
        self._positions.array[here] = positions
        self._lengths.array[here] = np.maximum(positions + 1, request.prompt_length)
        for group, blocks, slots in zip(self._store.groups, request.blocks, self._slots, strict=True):
            held = np.asarray(blocks)[positions // group.block_size]
            slots.array[here] = held * group.block_size + positions % group.block_size

    def _show_blocks(self, n: int, request: Request) -> None:
        """Copy a request's block ids into row n of the tables, from where they have grown."""
        held = len(request.blocks[0]) if request.blocks else 0
        shown, known = self._shown[n]
        if shown is request and known == held:
            return
        since = known if shown is request and known < held else 0
        for blocks, table in zip(request.blocks, self._tables, strict=True):
            table.array[n, since : len(blocks)] = blocks[since:]
        self._shown[n] = (request, held)

    def _send(self, sizes: Sizes) -> None:
        for field in (self._tokens, self._positions, self._lengths, *self._slots):
            field.send(sizes.tokens)
        self._logit_rows.send(sizes.rows)
        self._query_starts.send(sizes.sequences + 1)
        for field in (self._kv_lengths, *self._tables):
            field.send(sizes.sequences)


def table_width(max_seq_len: int, block_size: int) -> int:
    """P, the blocks a sequence can have."""
    return -(-max_seq_len // block_size)
