"""What the processor can do, and what of it torch uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bestiary.core.doctor.findings import Finding

if TYPE_CHECKING:
    from bestiary.core.device import ProcessorUse

#: What kernels live on: a name for people, and the flags by which systems call it.
_FEATURES = (
    ("AVX2", ("avx2",)),
    ("FMA", ("fma",)),
    ("F16C", ("f16c",)),
    ("AVX-512", ("avx512f",)),
    ("AVX-512 BF16", ("avx512_bf16",)),
    ("AVX-512 FP16", ("avx512_fp16",)),
    ("AVX-512 VNNI", ("avx512_vnni",)),
    ("AVX VNNI", ("avx_vnni",)),
    ("AMX BF16", ("amx_bf16",)),
    ("AMX INT8", ("amx_int8",)),
    ("AMX FP16", ("amx_fp16",)),
    ("NEON", ("neon", "asimd")),
    ("dot products", ("asimddp",)),
    ("BF16", ("bf16",)),
    ("I8MM", ("i8mm",)),
    ("SVE", ("sve",)),
    ("SVE2", ("sve2",)),
    ("SME", ("sme",)),
)
_USED = (("avx512f", "AVX512"), ("avx2", "AVX2"))  # what torch should use where the processor has it
_VARIABLE = "ATEN_CPU_CAPABILITY"


def processor() -> Iterator[Finding]:
    """The processor's features, and what torch makes of them."""
    from bestiary.core import device

    yield from judge(device.processor_flags(), device.processor_use(), os.environ.get(_VARIABLE))


def judge(flags: frozenset[str], use: ProcessorUse, forced: str | None) -> Iterator[Finding]:
    """What to say of them.

    Args:
        flags: as the system names them.
        forced: the value of ``ATEN_CPU_CAPABILITY``, which holds torch to less.
    """
    names = [name for name, spellings in _FEATURES if flags.intersection(spellings)]
    yield Finding("features", ", ".join(names) or "none that this system tells of")
    best = next((capability for flag, capability in _USED if flag in flags), None)
    order = [capability for _, capability in _USED]
    less = best is not None and use.capability in ("DEFAULT", *order[order.index(best) + 1 :])
    if less and forced is not None:
        text = f"{use.capability}, because {_VARIABLE} is set to {forced!r}; the processor has {best}"
        yield Finding("torch uses", text, "warning")
    elif less:
        yield Finding("torch uses", f"{use.capability}, though the processor has {best}", "warning")
    elif use.capability == "DEFAULT":
        yield Finding("torch uses", "no vector instructions: everything will be slow", "warning")
    else:
        yield Finding("torch uses", use.capability)
    yield _products(use)
    yield _threads(use.threads)


def _products(use: ProcessorUse) -> Finding:
    if not use.onednn:
        return Finding("products", "this torch has no oneDNN: 16-bit products are slow", "note")
    slow = [name for name in ("bfloat16", "float16") if name not in use.fast]
    fast = ", ".join(("float32", *use.fast))
    return Finding("products", f"oneDNN, fast in {fast}" + (f"; not in {', '.join(slow)}" if slow else ""))


def _threads(threads: int) -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{threads} for each operator, {usable} processors for this process"
    if threads > usable:
        return Finding("threads", f"{text}: they wait for each other", "warning")
    few = threads == 1 < usable
    return Finding("threads", text + (": is OMP_NUM_THREADS set?" if few else ""), "note" if few else "ok")
