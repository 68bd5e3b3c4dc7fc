"""The op that a whole foreign model is: its forward for one sequence after the other.

T packed tokens · N sequences · R rows with logits · V vocabulary · C layers with a cache · W parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.cache_utils import Cache, DynamicLayer

from bestiary.ops import Tolerance, integers, normal, op

from .paged import PagedLayer, arguments


class Foreign:
    """A module without weights, and what is needed to call it with some.

    Args:
        module: parameters on the meta device, buffers on the processor.
        cached: indices of the layers that have a cache.
        vocabulary: V.

    Attributes:
        names: of its parameters, in the order in which the op gets them; shared ones once.
    """

    def __init__(self, module: nn.Module, cached: tuple[int, ...], vocabulary: int) -> None:
        self.module, self.cached, self.vocabulary = module, cached, vocabulary
        self.names = tuple(name for name, _ in module.named_parameters())
        self.sequences = _Sequences(self)
        self._buffers = {f"module.{name}": buffer for name, buffer in module.named_buffers()}

    def __repr__(self) -> str:
        return type(self.module).__name__

    def tensors(self, weights: list[Tensor], device: torch.device) -> dict[str, Tensor]:
        """Parameters and buffers by their names in ``sequences``."""
        self._buffers = {name: buffer.to(device) for name, buffer in self._buffers.items()}
        return {**self._buffers, **{f"module.{name}": w for name, w in zip(self.names, weights, strict=True)}}


class _Sequences(nn.Module):
    """The module called for each sequence of a step, so that its weights are put in place once a step."""

    def __init__(self, foreign: Foreign) -> None:
        super().__init__()
        self.module = foreign.module
        self._cached, self._vocabulary = foreign.cached, foreign.vocabulary
        self._keeps = "logits_to_keep" in inspect.signature(foreign.module.forward).parameters

    def forward(
        self, tokens: Tensor, starts: list[int], lengths: list[int], rows: Tensor, memory: list[tuple[Tensor, ...]]
    ) -> Tensor:
        logits = tokens.new_empty((len(rows), self._vocabulary), dtype=torch.float32)
        for sequence, (start, stop) in enumerate(pairwise(starts)):
            if start == stop:
                continue
            stored = lengths[sequence] - (stop - start)
            layers = [PagedLayer(k, v, slots[start:stop], tables[sequence], stored) for k, v, slots, tables in memory]
            mine = (rows >= start) & (rows < stop)
            logits[mine] = self._one(tokens[start:stop], layers, stored, rows[mine] - start)
        return logits

    def _one(self, tokens: Tensor, layers: list[PagedLayer], stored: int, keep: Tensor) -> Tensor:
        """Logits of the tokens at ``keep`` of one sequence."""
        of_index = dict(zip(self._cached, layers, strict=True))
        every = [of_index.get(index) or DynamicLayer() for index in range(max(self._cached) + 1)]
        given = arguments(self.module, tokens.unsqueeze(0), Cache(layers=every), stored)
        if self._keeps:
            return self.module(**given, logits_to_keep=keep).logits[0].float()
        return self.module(**given).logits[0][keep].float()


def _inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    """A small GPT-2: a prompt, and a chunk of one beside a decode."""
    from .config import TransformersConfig
    from .model import Wrapped

    sizes = {"vocab_size": 11, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    raw = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "bos_token_id": 1, "eos_token_id": 2, **sizes}
    model = Wrapped(TransformersConfig.parse(raw))
    weights = [normal(generator, *shape, dtype=dtype, scale=0.3) for shape in (p.shape for p in model.parameters())]
    device = generator.device
    table = torch.tensor([[2, 0, 4], [1, 3, 4]], dtype=torch.int32, device=device)
    for chunks in (((5, 5),), ((1, 7), (4, 6))):
        spots = [(n, place) for n, (count, length) in enumerate(chunks) for place in range(length - count, length)]
        slots = torch.tensor([int(table[n, place // 4]) * 4 + place % 4 for n, place in spots], device=device)
        starts = [0, *accumulate(count for count, _ in chunks)]
        caches = [normal(generator, 6, 4, 2, 4, dtype=dtype) for _ in range(4)]
        yield (
            integers(generator, 11, len(spots)),
            torch.tensor(starts, dtype=torch.int32, device=device),
            torch.tensor([length for _, length in chunks], dtype=torch.int32, device=device),
            torch.arange(len(spots), device=device),
            [slots] * 2,
            [table[: len(chunks)]] * 2,
            caches[:2],
            caches[2:],
            weights,
            model.foreign,
        )


def _shape(tokens: Tensor, query_starts: Tensor, kv_lengths: Tensor, logit_rows: Tensor, *rest: Any) -> Tensor:
    foreign: Foreign = rest[-1]
    return tokens.new_empty((logit_rows.shape[0], foreign.vocabulary), dtype=torch.float32)


@op(
    name="transformers::forward",
    inputs=_inputs,
    tolerances={"float32": Tolerance(1e-4, 1e-4)},
    mutates=("k", "v"),
    fake=_shape,
)
def forward(
    tokens: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    logit_rows: Tensor,
    slots: list[Tensor],
    block_tables: list[Tensor],
    k: list[Tensor],
    v: list[Tensor],
    weights: list[Tensor],
    model: Foreign,
) -> Tensor:
    """Logits ``[R, V]`` float32 of ``logit_rows`` of the packed ``tokens [T]``: transformers' own forward.

    query_starts ``[N + 1]``, kv_lengths ``[N]``; for each of C layers slots ``[T]``, block_tables ``[N, P]`` and the memory
    k ``[B, S, H, D]``, v ``[B, S, H, E]``, in which the tokens' keys and values are put; W weights by ``model.names``.
    """
    memory = list(zip(k, v, slots, block_tables, strict=True))
    args = (tokens, query_starts.tolist(), kv_lengths.tolist(), logit_rows, memory)
    with torch.no_grad():
        logits: Tensor = functional_call(model.sequences, model.tensors(weights, tokens.device), args)
    return logits
