"""What torch keeps for a whole process: a kernel that changes it changes what everybody after it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bestiary.core import device as devices

#: By name: how a setting is asked for, and set.
_SETTINGS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, torch.set_default_device),
    "whether gradients are recorded": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the precision of float32 products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "whether algorithms must be deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
}


class ProcessState:
    """The settings and the states of the random generators, as they are now.

    Args:
        device: whose generator is watched besides the processor's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._settings = {name: ask() for name, (ask, _) in _SETTINGS.items()}
        self._random = devices.random_states(device)

    def changes(self) -> Iterator[str]:
        """What is another now, in words."""
        for name, was in self._settings.items():
            if (now := _SETTINGS[name][0]()) != was:
                yield f"{name} (from {was} to {now})"
        if any(not torch.equal(was, now) for was, now in self._pairs()):
            yield "the state of a random generator"

    def restore(self) -> None:
        """Make everything what it was."""
        for name, was in self._settings.items():
            ask, put = _SETTINGS[name]
            if ask() != was:
                put(was)
        devices.set_random_states(self._device, self._random)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._random, devices.random_states(self._device), strict=True)
