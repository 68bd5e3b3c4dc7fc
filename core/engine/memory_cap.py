"""A hard cap on memory: the KV cache gets what the plan leaves, and activations are taken at once, so that they never grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bestiary.core import device as devices
from bestiary.core.engine.memory import MemoryPlanner, process_memory
from bestiary.core.engine.network import Network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.errors import ConfigError, shown
from bestiary.core.plugins import PluginHost
from bestiary.core.program.bound import StepProgram
from bestiary.core.runtime.cache_groups import CacheGroup
from bestiary.core.runtime.kv_store import store_bytes


@dataclass(frozen=True)
class MemoryCap:
    """What ``memory_limit`` means to an engine that is being loaded; without a limit everything is left as it is."""

    planner: MemoryPlanner
    limit: int | None

    @classmethod
    def of(
        cls,
        network: Network,
        options: BuildOptions,
        host: PluginHost,
        stored: Mapping[str, str],
        limit: int | None,
        reference: bool,
    ) -> MemoryCap:
        """Measure what the process holds, before the engine adds to it.

        Args:
            stored: dtypes of the parameters whose files can be mapped.

        Raises:
            ConfigError: the reference mode, whose activations nobody plans, with a limit.
        """
        if limit is not None and reference:
            raise ConfigError(
                "E-MEMORY-LIMIT", "memory_limit", "can't be kept in the reference mode: it plans no memory"
            )
        held, _ = process_memory(network)
        return cls(MemoryPlanner(network, options, host, stored=stored, longest=network.max_seq_len, held=held), limit)

    def cache_memory(self, asked: float | int) -> float | int:
        """``kv_cache_memory`` so that the engine stays within the limit: in bytes, at most what was asked for.

        Without a limit, a fraction is one of what the device has left beside the largest step. A processor's memory is
        taken when it is touched, and shared with all else that runs there: a fraction of it is one of all that is free.

        Raises:
            ConfigError: the limit does not hold one longest sequence; with the arithmetic.
        """
        if not says_memory(asked):
            return asked  # refused where it is used
        device = self.planner.network.target.device
        if self.limit is None:
            if asked > 1 or device.type == "cpu":
                return asked
            return max(2, int(asked * (devices.free_memory(device) - self.planner.step_bytes())))
        left = self.planner.cache_budget(self.limit)
        wanted = asked * devices.free_memory(self.planner.network.target.device) if asked <= 1 else asked
        return max(2, min(left, int(wanted)))  # 1 would mean all that is free

    def check(self, groups: tuple[CacheGroup, ...]) -> None:
        """Refuse more blocks than the limit leaves room for, where they were asked for by number (ConfigError)."""
        if self.limit is not None:
            self.planner.check_groups(groups, self.limit)

    def room(self, groups: tuple[CacheGroup, ...]) -> int | None:
        """Bytes that the limit leaves beside the engine with these caches; None without a limit."""
        if self.limit is None:
            return None
        network = self.planner.network
        size = store_bytes(network.program.caches, groups, network.geometry.kv_dtype)
        return self.planner.cache_budget(self.limit) - size

    def reserve(self, program: StepProgram) -> None:
        """Take the memory of the largest step's activations; growing to it later would hold the old and the new."""
        if self.limit is not None:
            program.reserve(self.planner.network.limits)


def says_memory(asked: object) -> bool:
    """Whether it is what ``kv_cache_memory`` may be: a fraction of the free memory up to 1, or an integer of bytes."""
    if isinstance(asked, float):
        return 0 < asked <= 1
    return isinstance(asked, int) and not isinstance(asked, bool) and asked > 0


def check_memory(asked: object) -> None:
    """Refuse what ``kv_cache_memory`` can't be (ConfigError)."""
    if not says_memory(asked):
        raise ConfigError(
            "E-KV-MEMORY",
            "kv_cache_memory",
            "is neither a fraction of the free memory nor a number of bytes",
            found=shown(asked),
            expected="a fraction in (0, 1], or an integer of bytes",
        )
