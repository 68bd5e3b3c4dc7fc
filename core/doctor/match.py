"""Whether torch, triton, the driver and the GPUs were made for each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from bestiary.core.doctor.findings import Finding

if TYPE_CHECKING:
    from bestiary.core.device import TorchBuild


def match() -> Iterator[Finding]:
    """The installed torch against the driver, the GPUs and triton."""
    from bestiary.core import device

    build = device.torch_build()
    yield from driver(build)
    yield from architectures(build)
    yield triton(build)


def driver(build: TorchBuild) -> Iterator[Finding]:
    """What torch was built with, against what the driver runs."""
    made = f"{build.torch}, built " + (f"for CUDA {_dotted(build.built)}" if build.built else "without CUDA")
    yield Finding("torch", made)
    if build.built is None and not build.driver and build.supported is None:
        yield Finding("driver", "none: this is a processor-only machine, and torch and engines run on it")
    elif build.built is None:
        text = f"{_driver(build)}, and torch was built without CUDA: install torch for CUDA to use the GPU"
        yield Finding("driver", text, "warning")
    elif build.supported is None:
        text = "none is found: torch was built for CUDA, and engines run on the processor"
        yield Finding("driver", build.driver or text, "note")
    elif build.supported[0] < build.built[0]:
        text = f"{_driver(build)}, older than torch's {_dotted(build.built)}: install a newer driver, or an older torch"
        yield Finding("driver", text, "error")
    elif build.supported < build.built:
        text = (
            f"{_driver(build)}, older than torch's {_dotted(build.built)}: its own kernels run, those that are compiled "
            "here for a newer CUDA may not"
        )
        yield Finding("driver", text, "warning")
    else:
        yield Finding("driver", _driver(build))


def architectures(build: TorchBuild) -> Iterator[Finding]:
    """Whether torch has code for each GPU: binary code of its generation, or intermediate code to compile."""
    has = ", ".join(build.architectures) or "nothing"
    for name, capability in build.capabilities.items():
        number = f"sm_{capability[0]}{capability[1]}"
        if any(_runs(one, capability) for one in build.architectures):
            yield Finding(name, f"{number}, which torch has code for")
        elif any(_compiles(one, capability) for one in build.architectures):
            text = f"{number}, for which torch's kernels are compiled when first used; it has code for {has}"
            yield Finding(name, text, "note")
        else:
            text = f"{number}, which this torch has no code for (it has {has}): install a torch that was built for it"
            yield Finding(name, text, "error")


def triton(build: TorchBuild) -> Finding:
    """The installed triton against the one that torch's metadata asks for."""
    try:
        found: str | None = metadata.version("triton")
    except metadata.PackageNotFoundError:
        found = None
    wanted = _wanted("torch", "triton")
    if wanted is None:
        text = f"{found}, and this torch asks for none" if found else "is not installed, and this torch asks for none"
        return Finding("triton", text)
    asked = f"torch {build.torch} asks for triton{wanted.specifier}"
    if found is None:
        return Finding("triton", f"is not installed, and {asked}", "warning")
    if not wanted.specifier.contains(found, prereleases=True):
        return Finding("triton", f"{found}, and {asked}: install that", "error")
    return Finding("triton", f"{found}, as {asked}")


def _wanted(distribution: str, name: str) -> Requirement | None:
    try:
        lines = metadata.requires(distribution) or ()
    except metadata.PackageNotFoundError:
        return None
    requirements = (Requirement(line) for line in lines)
    fitting = (one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""}))
    return next((one for one in fitting if one.name == name), None)


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Binary code runs on its own generation from its number on; that with a letter on its own number only."""
    found = _parsed("sm", architecture)
    if found is None:
        return False
    (major, minor), exact = found
    return (major, minor) == capability if exact else major == capability[0] and minor <= capability[1]


def _compiles(architecture: str, capability: tuple[int, int]) -> bool:
    found = _parsed("compute", architecture)
    return found is not None and not found[1] and found[0] <= capability


def _parsed(kind: str, architecture: str) -> tuple[tuple[int, int], bool] | None:
    """``sm_90a`` as ((9, 0), True)."""
    parts = re.fullmatch(rf"{kind}_(\d+)(\d)([a-z]?)", architecture)
    return ((int(parts[1]), int(parts[2])), parts[3] == "a") if parts else None


def _driver(build: TorchBuild) -> str:
    runs = f"runs CUDA up to {_dotted(build.supported)}" if build.supported else ""
    return ", ".join(filter(None, (build.driver or "a driver", runs)))


def _dotted(version: tuple[int, int] | None) -> str:
    return ".".join(map(str, version or ()))
