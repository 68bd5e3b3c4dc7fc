"""transformers' cache interface over bestiary's paged memory: a module reads and writes blocks, and knows nothing of them.

T tokens of the step · L tokens of the sequence after it · H heads · D, E sizes of key and value · B blocks · S block size ·
P blocks a sequence can have.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers.cache_utils import Cache, DynamicLayer

from bestiary.ops import kv_write

from .config import cannot


class PagedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's past of one sequence, in the engine's blocks. A window is the mask's matter: all tokens are kept.

    Args:
        k, v: ``[B, S, H, D]`` and ``[B, S, H, E]``, the layer's memory.
        slots: ``[T]``, where the step's tokens go.
        table: ``[P]``, the sequence's blocks.
        stored: tokens that are there already.
    """

    def __init__(self, k: Tensor, v: Tensor, slots: Tensor, table: Tensor, stored: int) -> None:
        super().__init__()
        self.k, self.v, self.slots, self.table, self.stored = k, v, slots, table, stored

    def get_seq_length(self) -> int:
        return self.stored

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in ``[1, H, T, D]`` and ``[1, H, T, E]``; the same of all L tokens."""
        kv_write(key_states[0].transpose(0, 1), value_states[0].transpose(0, 1), self.k, self.v, self.slots)
        self.stored += key_states.shape[2]
        return self._all(self.k, key_states.dtype), self._all(self.v, value_states.dtype)

    def _all(self, memory: Tensor, dtype: torch.dtype) -> Tensor:
        blocks = self.table[: -(-self.stored // memory.shape[1])]
        return memory[blocks].flatten(0, 1)[: self.stored].transpose(0, 1).unsqueeze(0).to(dtype)


class _Watched(DynamicLayer):  # type: ignore[misc]
    """Notes what a layer stores of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        (batch, heads, tokens, size), (_, _, _, value_size) = key_states.shape, value_states.shape
        self.seen.append((batch, tokens, heads, size, value_size))
        return super().update(key_states, value_states, *args, **kwargs)


def stored_sizes(module: Any) -> dict[int, tuple[int, int, int]]:
    """Heads, key size and value size of each layer that stores any, found by running two tokens on the meta device.

    Raises:
        ConfigError: the module takes no cache, fails there, or does not store keys and values of each token once.
    """
    subject = f"architecture {type(module).__name__}"
    if not {"cache", "past_key_values"} & set(inspect.signature(module.forward).parameters):
        reason = "transformers knows it, but its forward there takes no cache of keys and values"
        raise cannot(subject, f"{reason}, and the fallback gives a module no other memory")
    layers = [_Watched() for _ in range(module.config.num_hidden_layers)]
    tensors = (*module.named_parameters(), *module.named_buffers())
    # Grouped products of experts know bfloat16 only there.
    given = {n: t.to("meta", torch.bfloat16 if t.is_floating_point() else t.dtype) for n, t in tensors}
    try:
        with torch.device("meta"), torch.no_grad():
            tokens = torch.zeros(1, 2, dtype=torch.int64)
            functional_call(module, given, (), arguments(module, tokens, Cache(layers=list(layers)), 0))
        found = {index: layer.seen for index, layer in enumerate(layers) if layer.seen}
        if not found or any(len(seen) != 1 or seen[0][:2] != (1, 2) for seen in found.values()):
            raise ValueError(f"what its {len(layers)} layers keep is no keys and values of each token")
    except Exception as error:
        raise cannot(subject, f"its cache can't be laid out: {type(error).__name__}: {error}") from error
    return {index: seen[0][2:] for index, seen in found.items()}  # type: ignore[misc]


def arguments(module: Any, tokens: Tensor, cache: Cache, stored: int) -> dict[str, Any]:
    """What the module's forward gets for ``tokens [1, T]`` that follow ``stored`` others."""
    known = inspect.signature(module.forward).parameters
    given = {
        "input_ids": tokens,
        "position_ids": torch.arange(stored, stored + tokens.shape[1], device=tokens.device).unsqueeze(0),
        "cache" if "cache" in known else "past_key_values": cache,
        "use_cache": True,
        "return_dict": True,
    }
    return {name: value for name, value in given.items() if name in known or name == "use_cache"}
