"""The devices an engine can run on: the only file that knows CUDA by name."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bestiary.core.errors import ConfigError

# Of a GPU's memory: the driver's context and the libraries' kernels, which torch can't measure.
_CONTEXT = 512 * 2**20
# Cycles that a GPU waits before a timed call: about 0.2 ms, longer than most launches.
_PAUSE = 400_000


@dataclass(frozen=True)
class DeviceFacts:
    """One device of this machine: ``cpu``, ``cuda:0``, …, or ``gpu`` for one that torch can't use.

    Args:
        model: the maker's name for it.
        memory, free: bytes.
        features: what kernels may ask of it.
        driver: versions of the driver and of what torch was built for; empty for a processor.
        problem: why it can't be used; the other fields say nothing then.
    """

    name: str
    model: str = ""
    memory: int = 0
    free: int = 0
    features: frozenset[str] = frozenset()
    driver: str = ""
    problem: str = ""


@dataclass(frozen=True)
class TorchBuild:
    """What torch was built for, and what is here.

    Args:
        torch: its version.
        built: ``(12, 8)``: the CUDA that it was built with; None for the processor only.
        architectures: what it has code for: ``sm_90``, ``compute_120``, …
        driver: the driver's name and version; empty where there is none.
        supported: the newest CUDA that the driver runs; None where there is no driver or it does not say.
        capabilities: each GPU's, by name: ``{"cuda:0": (9, 0)}``.
    """

    torch: str
    built: tuple[int, int] | None
    architectures: tuple[str, ...]
    driver: str
    supported: tuple[int, int] | None
    capabilities: Mapping[str, tuple[int, int]]


def torch_build() -> TorchBuild:
    """Read it; no GPU is used."""
    version = torch.version.cuda
    built = None if version is None else _two(int(part) for part in version.split(".")[:2])
    capabilities = {}
    for index in range(torch.cuda.device_count()):
        capabilities[f"cuda:{index}"] = torch.cuda.get_device_capability(index)
    architectures = tuple(torch.cuda.get_arch_list()) if built else ()
    return TorchBuild(torch.__version__, built, architectures, _driver(), _driver_supports(), capabilities)


def _driver_supports() -> tuple[int, int] | None:
    """Asked of the driver itself, because a torch without CUDA can't ask it."""
    number = ctypes.c_int(0)
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return (number.value // 1000, number.value % 1000 // 10) if status == 0 and number.value else None


def _two(numbers: Iterable[int]) -> tuple[int, int]:
    major, minor = numbers
    return major, minor


def inventory() -> tuple[DeviceFacts, ...]:
    """The processor and every GPU. A GPU that fails is told of, not raised."""
    import psutil

    cpu, memory = torch.device("cpu"), psutil.virtual_memory()
    found = [DeviceFacts("cpu", _processor_name(), int(memory.total), int(memory.available), features(cpu))]
    driver = _driver()
    for index in range(torch.cuda.device_count()):
        try:
            found.append(_gpu(torch.device("cuda", index), driver))
        except RuntimeError as error:
            problem = str(error).strip().partition("\n")[0][:200]
            found.append(DeviceFacts(f"cuda:{index}", problem=f"can't be used: {problem}"))
    if driver and not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        found.append(DeviceFacts("gpu", problem=f"there is {driver}, and this torch, built {built}, sees no device"))
    return tuple(found)


def _gpu(device: torch.device, driver: str) -> DeviceFacts:
    free, total = torch.cuda.mem_get_info(device)
    versions = ", ".join(filter(None, (driver, f"torch for CUDA {torch.version.cuda}")))
    return DeviceFacts(str(device), torch.cuda.get_device_name(device), total, free, features(device), versions)


def _driver() -> str:
    """``NVIDIA driver 570.86``; empty where there is none."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return ""
    number = next((word for word in words if word[0].isdigit() and "." in word), "of an unknown version")
    return f"NVIDIA driver {number}"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, os.uname().machine)


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
    flags = processor_flags()
    found |= {name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags}
    return frozenset(found)


@dataclass(frozen=True)
class ProcessorUse:
    """What torch uses of the processor.

    Args:
        capability: the instruction set of torch's own kernels: ``DEFAULT``, ``AVX2``, ``AVX512``, …
        onednn: whether products can run in oneDNN.
        fast: the 16-bit dtypes that oneDNN computes in here.
        threads: of one operator.
    """

    capability: str
    onednn: bool
    fast: tuple[str, ...]
    threads: int


def processor_use() -> ProcessorUse:
    """Ask torch."""
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    # Where torch has no oneDNN it has no such operators either.
    asked = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"} if onednn else {}
    fast = tuple(name for name, operator in asked.items() if getattr(torch.ops.mkldnn, operator)())
    return ProcessorUse(torch.backends.cpu.get_cpu_capability(), onednn, fast, torch.get_num_threads())


def label(device: torch.device) -> str:
    """A file name for the kind of device: plans that are made on one kind are not used on another."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).lower().replace(" ", "-").replace("/", "-")
    best = next((name for name in ("amx_bf16", "avx512f", "avx2") if name in processor_flags()), "generic")
    return f"cpu-{best}".replace("_", "-")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def beyond_caches(device: torch.device) -> int:
    """Bytes of which a device's caches hold a part at most."""
    return (512 if device.type == "cuda" else 96) * 2**20


def held_memory(device: torch.device) -> int:
    """Bytes that this process already holds there: its resident memory, or of a GPU torch's pool and 512 MiB of context."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device)) + _CONTEXT
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_allocation(run: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that were allocated at a time while ``run`` ran, beyond what there was before; its result counts.

    On a processor torch's profiler is asked, which sees inside of operators too.
    """
    if device.type == "cuda":
        run()  # what libraries allocate once and keep
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
        torch.cuda.reset_peak_memory_stats(device)
        kept = run()
        torch.cuda.synchronize(device)
        most = torch.cuda.memory_stats(device)["requested_bytes.all.peak"] - before
        del kept
        return int(most)
    # Not torch.profiler's, which imports torch's compiler first: seconds.
    with torch.autograd.profiler.profile(profile_memory=True) as recorded:
        kept = run()
    assert recorded.kineto_results is not None
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    del kept
    return most


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 are made of float32, and sums of 16-bit products in float32, on whatever device.

    The settings are the process's own, so others' steps meanwhile have them too.
    """
    matmul = torch.backends.cuda.matmul
    names = ("allow_tf32", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    before = {name: getattr(matmul, name) for name in names}
    try:
        for name in names:
            setattr(matmul, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(matmul, name, value)


def available() -> tuple[str, ...]:
    """The kinds of devices that are here: ``cpu``, and ``cuda`` where there is a GPU."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def random_states(device: torch.device) -> tuple[Tensor, ...]:
    """The states of torch's own generators, uint8: the processor's, and the device's if it is another."""
    host = torch.get_rng_state()
    return (host, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (host,)


def set_random_states(device: torch.device, states: Sequence[Tensor]) -> None:
    """Make the generators' states what :func:`random_states` said of them."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes with nothing else on the device.

    On a GPU between two events behind a short pause, so that what the host takes to launch does not count as long as it is
    shorter than the pause.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _between_events(run)
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _between_events(run: Callable[[], Any]) -> float:
    """Of the current GPU."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    torch.cuda._sleep(_PAUSE)  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def fetch(tensor: Tensor) -> Tensor:
    """The tensor's values on the host, there once a :func:`mark` made after this has passed."""
    if tensor.device.type == "cpu":
        return tensor
    landing = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return landing.copy_(tensor, non_blocking=True)


def mark(device: torch.device) -> Callable[[], None]:
    """A place in what the device was given; calling it waits until the device is past it."""
    if device.type != "cuda":
        return _past
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize


def records(device: torch.device) -> bool:
    """Whether :class:`GraphRecorder` works on the device."""
    return device.type == "cuda"


class GraphRecorder:
    """Records what a function gives the device, to be given again at once. Memory is shared by all that one recorder made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run the function once, so that all is compiled, and once to record it; the recording's replay.

        Other threads may use the device meanwhile.

        Raises:
            RuntimeError: the function waits for the device, or there is no recording on such a device.
        """
        if self._pool is None:
            raise RuntimeError(f"{self._device.type} records no graphs")
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            run()
        replay: Callable[[], None] = graph.replay
        return replay


def overlaps(device: torch.device) -> bool:
    """Whether the host goes on while the device works, so that steps may be launched ahead."""
    return device.type == "cuda"


def _past() -> None:
    """The host itself has done it already."""


def processor_flags() -> frozenset[str]:
    """The features of the processor as the system names them: ``avx2``, ``amx_bf16``, ``asimd``, …"""
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
