"""The devices an engine can run on: the only file that knows CUDA by name."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from bestiary.core.errors import ConfigError


def choose(name: str) -> torch.device:
    """``auto`` (the first GPU, else the processor), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(
            "E-DEVICE", "device", "unknown device", found=repr(name), expected="auto, cpu, cuda or cuda:N"
        )
    if kind == "cuda" and int(index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError("E-DEVICE", "device", "there is no such GPU", found=name, expected=f"one of {count} GPUs")
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", int(index or 0))


def features(device: torch.device) -> frozenset[str]:
    """What kernels may ask of the device: ``avx2``, ``avx512``, ``amx`` …, or ``sm_90``."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return frozenset({f"sm_{major}{minor}"})
    found = {torch.backends.cpu.get_cpu_capability().lower()}
    flags = _processor_flags()
    found |= {name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags}
    return frozenset(found)


def label(device: torch.device) -> str:
    """A file name for the kind of device: plans that are made on one kind are not used on another."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).lower().replace(" ", "-").replace("/", "-")
    best = next((name for name in ("amx_bf16", "avx512f", "avx2") if name in _processor_flags()), "generic")
    return f"cpu-{best}".replace("_", "-")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset({os.uname().machine})


def of_rank(name: str, rank: int) -> torch.device:
    """The device of one of several ranks: all on the processor, or each on a GPU of its own, which becomes the current.

    Raises:
        ConfigError: there are not as many GPUs.
    """
    device = choose(name)
    if device.type == "cuda":
        device = choose(f"cuda:{(device.index or 0) + rank}")
        torch.cuda.set_device(device)
    return device


def backend(device: torch.device) -> str:
    """What torch.distributed talks through between devices of this kind."""
    return "nccl" if device.type == "cuda" else "gloo"
