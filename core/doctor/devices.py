"""The devices that an engine could run on here."""

from __future__ import annotations

from collections.abc import Iterator

from bestiary.core.doctor.findings import Finding
from bestiary.core.home import gib


def devices() -> Iterator[Finding]:
    """The processor and each GPU, with memory and what kernels may ask of them."""
    from bestiary.core import device

    for one in device.inventory():
        if one.problem:
            yield Finding(one.name, one.problem, "error" if one.name != "gpu" else "warning")
            continue
        memory = f"{gib(one.free)} free of {gib(one.memory)}"
        features = ", ".join(sorted(one.features))
        yield Finding(one.name, "; ".join(filter(None, (one.model, memory, features, one.driver))))
