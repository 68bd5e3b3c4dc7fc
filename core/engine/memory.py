"""What an engine will take of its device's memory, from shapes alone: no weight is read and nothing is allocated.

T tokens of a step · N sequences · R rows of logits. The largest step bounds every part, because buffers grow with each of T, N
and R. A step has a row of logits for each sequence, and up to ``PROMPT_ROWS`` for prompt log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bestiary.core import device as devices
from bestiary.core.checkpoint.safetensors import ITEMSIZE
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.engine.network import PROMPT_ROWS, Network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.engine.step_bytes import graph_bytes, input_bytes, sampler_bytes
from bestiary.core.engine.takes import KernelTakes
from bestiary.core.errors import ConfigError
from bestiary.core.plugins import PluginHost
from bestiary.core.program.buffers import assign, needed
from bestiary.core.program.program import Part, Value
from bestiary.core.program.shapes import Dim, Shape, Sizes
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.inputs import table_width
from bestiary.core.runtime.kv_store import demands, store_bytes


class Shares(NamedTuple):
    """Bytes by purpose.

    Attributes:
        weights_mapped: pages of the weight files, shared with other processes and taken back by the system at need.
        weights_made: copies: merged or sliced weights, those cast to another dtype, all on a device of its own.
        kv_cache: all cache groups' blocks.
        activations: the buffers of a step's results, logits included.
        inputs: a step's inputs, and the state of each slot.
        sampler: counts of penalized requests' tokens, and what choosing tokens takes for a moment.
        workspace: what the hungriest kernel takes for a moment.
        graphs: an estimate of recorded graphs; 0 where there are none.
        held: what the process holds before the engine is loaded.
    """

    weights_mapped: int
    weights_made: int
    kv_cache: int
    activations: int
    inputs: int
    sampler: int
    workspace: int
    graphs: int
    held: int

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True)
class MemoryPlan:
    """What an engine takes at these options, and what else would fit.

    Attributes:
        prompt_logprobs: bytes of ``activations`` that only steps with prompt log-probabilities use.
        available: bytes there are for the process.
        largest_batch: most sequences of ``max_seq_len`` that fit, up to ``max_num_tokens``, since a step that decodes has a token
            for each; 0 where not one does.
        largest_seq: longest sequences of which ``max_batch_size`` fit; 0 where not even one block each does.
        shortage: why something does not fit; None where all does.
        unstated: kernels that don't say what they allocate; their results are counted once more in their place.
    """

    device: str
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    tensor_parallel: int
    pipeline_parallel: int
    shares: Shares
    prompt_logprobs: int
    available: int
    largest_batch: int
    largest_seq: int
    shortage: str | None
    unstated: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether ``max_batch_size`` sequences of ``max_seq_len`` tokens fit at a time."""
        return self.shares.total <= self.available

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        fields = {name: value for name, value in vars(self).items() if name != "shares"}
        return {**fields, "bytes": self.shares._asdict(), "total": self.shares.total, "fits": self.fits}


class MemoryPlanner:
    """Plans for a network at any batch size and sequence length.

    Args:
        stored: each parameter's dtype where it lies in a file that can be mapped; others are copies.
        longest: most tokens of a sequence that the model allows.
        held: what the process holds already.
    """

    def __init__(
        self,
        network: Network,
        options: BuildOptions,
        host: PluginHost,
        *,
        stored: Mapping[str, str],
        longest: int,
        held: int,
    ) -> None:
        self.network, self.options, self.longest, self.held = network, options, longest, held
        self.takes = KernelTakes(network, options, host)
        self._weights = weight_bytes(network, stored)
        self._buffers = assign(network.program, network.shapes)
        self._tables = [v for name, v in network.program.inputs.items() if name.startswith("block_tables.")]

    def shares(self, batch: int, length: int) -> Shares:
        """Bytes by purpose with so many sequences of so many tokens at a time."""
        network, tokens = self.network, self.options.max_num_tokens
        sequences = min(batch, tokens)
        sizes = Sizes(tokens, sequences, sequences + PROMPT_ROWS)
        workspace = self.takes.workspace(self._shapes(table_width(length, network.geometry.block_size)), sizes)
        mapped, made = self._weights
        records = self.options.graphs and self.takes.recordable and devices.records(network.target.device)
        return Shares(
            weights_mapped=mapped,
            weights_made=made + self.takes.packed,
            kv_cache=self.kv_bytes(batch, length),
            activations=self._activations(sizes),
            inputs=input_bytes(network, sizes, length),
            sampler=sampler_bytes(network, sizes),
            workspace=workspace,
            graphs=graph_bytes(network, sequences, length, workspace) if records else 0,
            held=self.held,
        )

    def plan(self, available: int) -> MemoryPlan:
        """The plan for the options' batch size and the network's sequence length.

        Args:
            available: bytes there are for the process, those that it holds included.
        """
        batch, length, tokens = self.options.max_batch_size, self.network.max_seq_len, self.options.max_num_tokens
        shares = self.shares(batch, length)
        few = Sizes(tokens, min(batch, tokens), min(batch, tokens))
        return MemoryPlan(
            device=str(self.network.target.device),
            max_batch_size=batch,
            max_seq_len=length,
            max_num_tokens=tokens,
            tensor_parallel=self.options.tensor_parallel,
            pipeline_parallel=self.options.pipeline_parallel,
            shares=shares,
            prompt_logprobs=shares.activations - self._activations(few),
            available=available,
            largest_batch=_most(tokens, lambda n: self.shares(n, length).total <= available),
            largest_seq=_most(self.longest, lambda n: self.shares(batch, n).total <= available),
            shortage=self._shortage(shares, available),
            unstated=self.takes.unstated,
        )

    def cache_budget(self, limit: int) -> int:
        """Bytes that the KV cache may take so that the whole stays within ``limit``.

        Raises:
            ConfigError: they don't hold one longest sequence; with the arithmetic.
        """
        batch, length = self.options.max_batch_size, self.network.max_seq_len
        shares = self.shares(batch, length)
        rest, one = shares.total - shares.kv_cache, self.kv_bytes(1, length)
        if rest + one > limit:
            others = [f"{name} {size:,}" for name, size in shares._asdict().items() if size and name != "kv_cache"]
            raise ConfigError(
                "E-MEMORY-LIMIT",
                "memory_limit",
                f"does not hold the engine and one sequence of max_seq_len = {length}",
                found=f"{limit:,} bytes",
                expected=f"at least {rest + one:,} bytes ({' + '.join([*others, f'one sequence {one:,}'])})",
                hint="lower max_num_tokens, max_seq_len or max_batch_size; bestiary plan-memory shows what each takes",
            )
        return limit - rest

    def step_bytes(self) -> int:
        """Bytes that the largest step takes beside weights and caches."""
        shares = self.shares(self.options.max_batch_size, self.network.max_seq_len)
        return shares.activations + shares.inputs + shares.sampler + shares.workspace + shares.graphs

    def kv_bytes(self, batch: int, length: int) -> int:
        """Bytes of the caches of so many sequences of so many tokens."""
        geometry = self.network.geometry
        needs = demands(
            self.network.program.caches,
            block_size=geometry.block_size,
            dtype=geometry.kv_dtype,
            max_seq_len=length,
            max_num_tokens=self.options.max_num_tokens,
        )
        return sum(need.nbytes(batch) for need in needs)

    def check_groups(self, groups: tuple[CacheGroup, ...], limit: int) -> None:
        """Refuse caches that were asked for by their number of blocks and don't fit within ``limit`` (ConfigError)."""
        size = store_bytes(self.network.program.caches, groups, self.network.geometry.kv_dtype)
        budget = self.cache_budget(limit)
        if size > budget:
            raise ConfigError(
                "E-MEMORY-LIMIT", "num_blocks", "takes more than memory_limit leaves to the KV cache",
                found=f"{size:,} bytes", expected=f"at most {budget:,} bytes",
            )  # fmt: skip

    def _activations(self, sizes: Sizes) -> int:
        return sum(needed(self._buffers, self.network.shapes, sizes))

    def _shapes(self, table: int) -> dict[Value, Shape]:
        """The network's shapes with tables of another width: only the tables themselves depend on it."""
        widened: dict[Value, Shape] = dict(self.network.shapes)
        for value in self._tables:
            widened[value] = replace(widened[value], dims=(widened[value].dims[0], Dim(table)))
        return widened

    def _shortage(self, shares: Shares, available: int) -> str | None:
        if shares.total <= available:
            return None
        rest, one = shares.total - shares.kv_cache, self.kv_bytes(1, self.network.max_seq_len)
        if rest > available:
            return f"without any cache it takes {rest:,} of {available:,} bytes"
        if rest + one > available:
            return f"the cache of one sequence takes {one:,} bytes and {available - rest:,} are left for it"
        return f"the cache takes {shares.kv_cache:,} bytes and {available - rest:,} are left for it"


def weight_bytes(network: Network, stored: Mapping[str, str]) -> tuple[int, int]:
    """Bytes of the program's constants: those that share a file's pages, and those that are copies.

    On the host a weight of one contiguous part, stored in the dtype that the engine computes in, is the file's own pages.
    """
    dtype = network.target.dtype
    name = str(dtype).removeprefix("torch.")
    mapped = made = 0
    for parts in dict.fromkeys(weight.parts for weight in network.program.weights()):
        size = sum(math.prod(part.shape) * ITEMSIZE[part.dtype or name] for part in parts)
        on_host = network.target.device.type == "cpu"
        if (
            on_host
            and len(parts) == 1
            and stored.get(parts[0].parameter) == (parts[0].dtype or name)
            and _contiguous(parts[0])
        ):
            mapped += size
        else:
            made += size
    return mapped, made


def _contiguous(part: Part) -> bool:
    return part.axis in (None, 0) and part.repeat == 1


def mapped_dtypes(weights: Weights) -> dict[str, str]:
    """The dtype of each tensor that can be used where it lies in its file."""
    return {n: e.dtype for n, e in weights.entries.items() if e.nbytes and not e.offset % _width(e.dtype)}


def _width(dtype: str) -> int:
    import torch

    return int(getattr(torch, dtype).itemsize)


def process_memory(network: Network) -> tuple[int, int]:
    """Bytes that this process holds on the network's device, and bytes there are for it in all."""
    held = devices.held_memory(network.target.device)
    return held, held + devices.free_memory(network.target.device)


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``limit`` that fits, where all smaller ones do too; 0 if none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
