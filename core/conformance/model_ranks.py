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
from bestiary.core.conformance.model_quantization import default, ranks_agree
from bestiary.core.engine.steps import logits, whole
from bestiary.core.errors import ConfigError

_REFUSALS = ("SHARD", "STAGES")


class Task(NamedTuple):
    """An engine to load, with rules for its weights, and a sequence to run through it."""

    engine: str
    tokens: list[int]
    blocks: list[list[int]]
    quantization: str | None = None


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
    for method in case.suite.host.quantizations():
        if (pair := results.get(f"{case.name}, {method.name}")) is not None:
            ranks_agree(case, method, pair[1], findings)


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
                tasks |= _quantized(case, engine)
            tasks[case.name] = Task(str(engine), case.tokens(case.length), case.blocks(1))
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


def _quantized(case: Case, engine: Path) -> dict[str, Task]:
    """A config's task with each method that needs no calibration."""
    task = Task(str(engine), case.tokens(case.length), case.blocks(1))
    methods = [one for one in case.suite.host.quantizations() if not default(case, one)[0].wants]
    return {f"{case.name}, {one.name}": task._replace(quantization=one.name) for one in methods}


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
            engine = load_engine(
                Path(task.engine), host=host, place=place, kv_cache_memory=2**24, quantization=task.quantization
            )
        except ConfigError as error:
            if task.quantization is None or error.code != "E-BUILD-SHARD":
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
