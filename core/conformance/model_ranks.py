"""Two ranks over gloo against the reference: one pair of processes for all configs of a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case
from bestiary.core.conformance.model_logits import FLOAT32, difference
from bestiary.core.conformance.model_quantization import CACHES, ranks_agree, stated
from bestiary.core.engine.steps import logits, whole
from bestiary.core.errors import ConfigError

_REFUSALS = ("SHARD", "STAGES")


class Task(NamedTuple):
    """An engine to load, with options, and a sequence to run through it."""

    engine: str
    tokens: list[int]
    blocks: list[list[int]]
    options: dict[str, Any]


def tensor_parallel(case: Case, findings: Findings, wanted: Sequence[str]) -> None:
    """Two tensor-parallel ranks, each with its slices; both have the same logits."""
    _check(case, findings, wanted, tensor=2, stages=1)


def pipeline_parallel(case: Case, findings: Findings, wanted: Sequence[str]) -> None:
    """Two pipeline stages; the last has the logits."""
    _check(case, findings, wanted, tensor=1, stages=2)


def _check(case: Case, findings: Findings, wanted: Sequence[str], *, tensor: int, stages: int) -> None:
    results = _results(case, wanted, tensor, stages)
    mine = results[case.name]
    if isinstance(mine, ConfigError):
        _check_refusal(mine, findings)
        others = [name for name, one in results.items() if not isinstance(one, ConfigError)]
        assert others or len(wanted) < len(case.suite.cases), "no config can be divided by two: give one that can"
        return
    first, second = mine
    expected = case.expected(case.tokens(case.length))
    if stages == 2:
        assert first is None, "the first stage has logits"
    else:
        assert first is not None and torch.equal(first, second), "the ranks have different logits"
    findings.within("logits of two ranks", difference(second, expected), FLOAT32)
    for options in _few_bits(case):
        if (pair := results.get(f"{case.name}, {options}")) is not None:
            ranks_agree(case, options, pair[1], findings)


def _check_refusal(error: ConfigError, findings: Findings) -> None:
    assert error.code.removeprefix("E-BUILD-") in _REFUSALS, f"the build failed otherwise than for its sizes: {error}"
    arithmetic = f"{error.found} {error.expected}"
    assert error.found and error.expected and any(c.isdigit() for c in arithmetic), f"no arithmetic: {error}"
    findings.refused(f"{error.subject}: {error.found}, expected {error.expected}")


def _results(case: Case, wanted: Sequence[str], tensor: int, stages: int) -> dict[str, Any]:
    """By config the two ranks' logits, or the ConfigError that the build raised; computed once for a class."""
    shared = case.suite.shared
    key = f"{tensor}x{stages}"
    if not set(wanted) <= shared.get(key, {}).keys():
        shared[key] = _run([case.suite.cases[name] for name in wanted], tensor, stages)
    found: dict[str, Any] = shared[key]
    return found


def _run(cases: Sequence[Case], tensor: int, stages: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    tasks: dict[str, Task] = {}
    for case in cases:
        try:
            engine = case.engine(tensor_parallel=tensor, pipeline_parallel=stages)
        except ConfigError as error:
            results[case.name] = error
        else:
            if tensor == 2 and not tasks:  # one config of a family shows how its layers are divided
                tasks |= {f"{case.name}, {options}": _task(case, engine, options) for options in _few_bits(case)}
            tasks[case.name] = _task(case, engine, {})
    if tasks:
        suite = cases[0].suite
        directory = suite.directory / f"ranks-{tensor}x{stages}-{len(list(suite.directory.iterdir()))}"
        directory.mkdir()
        only, prefer = suite.host.plugin_names(), suite.host.preferences()
        arguments = (tensor, stages, str(directory), list(tasks.values()), only, prefer)
        start_processes(_rank, arguments, nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
        made = [torch.load(directory / f"{rank}.pt") for rank in range(2)]
        results |= {name: pair for name, *pair in zip(tasks, *made, strict=True)}
    return results


def _task(case: Case, engine: Path, options: dict[str, Any]) -> Task:
    return Task(str(engine), case.tokens(case.length), case.blocks(1), options)


def _few_bits(case: Case) -> list[dict[str, Any]]:
    """Options of ``load_engine``: each method that needs no calibration, and each kind of cache."""
    methods = [one.name for one in case.suite.host.quantizations() if not stated(case, one, one.name)[0].wants]
    return [*({"quantization": name} for name in methods), *({"kv_dtype": kind} for kind in CACHES)]


def _rank(
    rank: int,
    tensor: int,
    stages: int,
    directory: str,
    tasks: list[Task],
    only: tuple[str, ...],
    prefer: dict[str, str],
) -> None:
    """What one process does: meet the other, run every task, save what it has."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    from bestiary.core.engine.load import load_engine
    from bestiary.core.plugins import PluginHost
    from bestiary.core.runtime.rank_main import join, leave

    host = PluginHost.load(only=only, prefer=prefer)
    place = join(rank, tensor, stages, "gloo", directory)
    made: list[Tensor | str | None] = []
    for task in tasks:
        try:
            engine = load_engine(Path(task.engine), host=host, place=place, kv_cache_memory=2**24, **task.options)
        except ConfigError as error:
            if not task.options or error.code not in ("E-BUILD-SHARD", "E-BUILD-OPTION"):
                raise
            made.append(f"{error.subject}: {error.found}, expected {error.expected}")  # on the other rank as well
            continue
        message = whole(task.tokens, *task.blocks)
        if place.samples:
            made.append(logits(engine, message))
        else:
            engine.runner.forward(message)
            made.append(None)
    torch.save(made, Path(directory) / f"{rank}.pt")
    leave(place)
