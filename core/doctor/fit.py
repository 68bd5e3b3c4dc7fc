"""Whether a named model fits: its conversion on the cache's disk, its engine into memory, and what else would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bestiary.core.doctor.findings import Finding
from bestiary.core.errors import OutputError
from bestiary.core.home import check_space, free_space, gib

if TYPE_CHECKING:
    from bestiary.core.engine.memory import MemoryPlan
    from bestiary.core.engine.options import BuildOptions
    from bestiary.core.plugins import PluginHost
    from bestiary.core.source import Source

_KINDS = {"engine": "an engine", "checkpoint": "a checkpoint", "source": "a model to convert"}


def fit(load: Callable[[], PluginHost], model: str, said: Mapping[str, Any]) -> Iterator[Finding]:
    """What a local model takes of disk and memory, from headers and configs alone.

    Args:
        said: build options that the caller named.
    """
    from bestiary.core.engine.options import BuildOptions
    from bestiary.core.planning import known_of, plan_memory
    from bestiary.core.progress import Silent
    from bestiary.core.source import find_local

    host, options = load(), BuildOptions(**said)
    source = find_local(model, host)
    assert source.path is not None
    known = known_of(source.path, host, said, Silent())
    dtype = known.options.dtype if source.kind == "engine" else known.dtype
    yield Finding("model", f"{source.name}: {_KINDS[source.kind]}, {known.model.name}, {dtype}")
    yield disk(source, host, options)
    yield from memory(plan_memory(source.path, host=host, said=said))


def memory(plan: MemoryPlan) -> Iterator[Finding]:
    """What a memory plan says."""
    asked = f"{plan.max_batch_size} at a time of {plan.max_seq_len} tokens"
    total = f"{gib(plan.shares.total)} of {gib(plan.available)} on {plan.device}, for {asked}"
    if plan.fits:
        yield Finding("memory", f"fits: {total}")
    else:
        text = f"does not fit: {total}: {plan.shortage}"
        if plan.largest_batch or plan.largest_seq:
            text += "; lower --max-batch-size or --max-seq-len"
        yield Finding("memory", text, "error")
    yield Finding("largest batch", f"{plan.largest_batch} of {plan.max_seq_len} tokens")
    yield Finding("longest sequence", f"{plan.largest_seq} tokens, {plan.max_batch_size} at a time")
    if plan.unstated:
        text = f"estimated for kernels that don't state it: {', '.join(plan.unstated)}"
        yield Finding("workspace", text, "note")


def disk(source: Source, host: PluginHost, options: BuildOptions) -> Finding:
    """What is still to be written into the cache, and whether its disk has room for it."""
    from bestiary.core.prepare import disk_needs

    assert source.path is not None
    if source.kind == "source" and source.path.is_dir() and not any(source.path.glob("*.safetensors")):
        return Finding("disk", "there are no weights to convert, only a config", "note")
    needs = disk_needs(source, host=host, options=options)
    if needs.built:
        return Finding("disk", "nothing is needed, its engine is there")
    parts = [f"{gib(needs.convert)} to convert it"] if needs.convert else []
    parts += [f"{gib(needs.copy)} for the engine's copy of its weights"] if needs.copy else []
    text = f"{' and '.join(parts) or 'next to nothing'}, {gib(free_space(needs.folder))} free in the cache"
    try:
        check_space(needs.folder, needs.convert + needs.copy, source.name)
    except OutputError as error:
        return Finding("disk", f"does not fit: {text} ({error.hint})", "error")
    return Finding("disk", f"fits: {text}")
