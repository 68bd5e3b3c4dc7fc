"""The checks of one kernel, in this process: on its op's own inputs and on batches derived from them."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.conformance.kernel_cases import (
    ROWS_OF_LARGE,
    Batch,
    KernelCase,
    alike,
    batches,
    describe_call,
    row_count,
    sizes,
)
from bestiary.core.conformance.kernel_memory import same
from bestiary.core.conformance.kernel_report import Finding, KernelReport
from bestiary.core.conformance.kernel_rows import odd_one_out
from bestiary.core.conformance.kernel_run import Expected, Run, Weak, faked
from bestiary.core.conformance.kernel_state import ProcessState
from bestiary.core.errors import PluginError
from bestiary.core.plugins import resolve
from bestiary.core.plugins.requirements import unmet
from bestiary.core.plugins.resolve import describe
from bestiary.core.program.bound import reference_kernel
from bestiary.core.program.calls import load_kernel, supported
from bestiary.core.program.compare import Deviation, deviation

_LEAST_RUNS, _RUNS, _BUDGET = 3, 20, 0.01  # of timing: runs at least and at most, seconds


class KernelCheck:
    """Checks a kernel in a dtype.

    Args:
        say: is told of each place before the kernel gets there; where the process dies, the last one is to blame.
        distribution: who brings the kernel, for the report.
        waived: see :class:`KernelReport`.
    """

    def __init__(
        self,
        case: KernelCase,
        *,
        say: Callable[[str], None] = lambda text: None,
        distribution: str = "",
        waived: Mapping[str, str] | None = None,
    ) -> None:
        self._op, self._kernel, self._dtype = case.op, case.kernel, case.dtype
        self._device = torch.device(case.device)
        self._say, self._distribution, self._waived = say, distribution, waived or {}
        self._findings: dict[str, Finding] = {}
        self._declined: Counter[str] = Counter()
        self._done: set[str] = set()
        self._kept: list[tuple[Batch, str, Weak]] = []
        self._ran = self._empty = 0
        self._worst: float | None = None
        self._speed: float | None = None
        self._largest: tuple[int, Batch] | None = None
        self._function: Callable[..., Any]
        self._pack: Callable[..., Any] | None = None

    def report(self) -> KernelReport:
        """Run all checks."""
        self._say("loading it")
        reason = unmet(self._kernel.requires)
        if reason is None and self._load():
            state = ProcessState(self._device)  # which also calls change that are measured and not looked at
            first, second = (batches(self._op, self._device, self._dtype, seed) for seed in (2, 3))
            for batch, other in zip_longest(first, second):
                if batch is not None:
                    self._check(batch, other)
            state.restore()
            self._references()
            self._measure()
        elif reason is not None:
            self._declined[reason] += 1
        if not self._ran and not self._declined and not self._findings:
            self._find("supports", "", "the op's generator gives no input")
        return KernelReport(
            op=self._op.name,
            kernel=self._kernel.name,
            distribution=self._distribution,
            device=self._device.type,
            dtype=str(self._dtype).removeprefix("torch."),
            ran=self._ran,
            empty=self._empty,
            declined=dict(self._declined),
            worst=self._worst,
            invariant=self._kernel.batch_invariant,
            workspace=self._kernel.workspace is not None,
            done=tuple(sorted(self._done)),
            speed=self._speed,
            findings=tuple(self._findings.values()),
            waived=self._waived,
        )

    def _load(self) -> bool:
        try:
            self._function = load_kernel(self._kernel, self._op)
            if self._kernel.pack is not None:
                self._pack = resolve(self._kernel.pack, needed_by=f"kernel {self._kernel.op}={self._kernel.name}")
        except PluginError as error:
            self._find("load", "", str(error))
            return False
        self._done.add("load")
        return True

    def _check(self, batch: Batch, other: Batch | None) -> None:
        """A call; ``other`` has other values of the same shapes, mostly."""
        call = describe_call(self._op, batch.args, self._device)
        self._done.add("supports")
        try:
            reason = supported(self._kernel, call)
        except PluginError as error:
            self._find("supports", batch, f"{error.problem}" + (f"; found {error.found}" if error.found else ""))
            return
        if reason is not None:
            self._declined[reason] += 1
            return
        expected = Expected(self._op, batch.args)
        try:
            run = self._compare(batch, expected)
            if run is not None and other is not None and alike(batch, other):
                self._values(batch, other, run)
            self._workspace(batch, expected)
            self._invariance(batch)
            self._graph(batch, expected)
        except (Exception, SystemExit) as error:
            devices.synchronize(self._device)  # raises, and ends this process's use, where the device is lost
            self._find("supports", batch, f"supports said yes, and it raised {describe(error)}")

    def _compare(self, batch: Batch, expected: Expected) -> Run | None:
        """What ran, for another run; None where its results are wrong or missing."""
        self._say(f"{batch}")
        first, again = self._run(batch, expected.results), self._run(batch, expected.results)
        complaints = list(first.complaints(first(), expected))
        self._ran += 1
        self._empty += row_count(self._op, batch.args) == 0 or expected.empty
        self._done |= {"result", "state", "inputs", "bands", "determinism", "crash"}
        self._done |= {"fill"} if self._op.results else set()
        for check, message in complaints:
            self._find(check, batch, message)
        whole = not any(check in ("fill", "result") and check not in self._waived for check, _ in complaints)
        near = whole and self._tolerance(batch, first, expected)
        if whole:
            again()
            if not _equal(first.results, again.results):
                self._find("determinism", batch, "gave two results for one input")
            if not any(check == "inputs" for check, _ in complaints):  # else it is known why
                again.restore()
                again()  # a model packs its constants once, and calls again and again
                if not _equal(first.results, again.results):
                    self._find("determinism", batch, "called again on what it packed, it gave another result")
        self._kept += [(batch, name, held) for name, held in first.references()]
        size = sum(result.numel() for result in first.results)
        if near and not complaints and (self._largest is None or size > self._largest[0]):
            self._largest = size, batch
        return again if near else None

    def _values(self, batch: Batch, other: Batch, run: Run) -> None:
        self._done.add("values")
        self._say(f"{batch}, with other values in its memory")
        expected = Expected(self._op, other.args)
        run.change(other.args)
        run()
        for differs in self._deviations(run, expected):
            if not differs.excess <= 1:
                self._find("values", batch, f"with other values in the same memory: {differs}")

    def _tolerance(self, batch: Batch, run: Run, expected: Expected) -> bool:
        self._done.add("tolerance")
        deviations = self._deviations(run, expected)
        for differs in deviations:
            self._worst = max(self._worst or 0.0, differs.excess)
            if not differs.excess <= 1:
                self._find("tolerance", batch, str(differs))
        return all(differs.excess <= 1 for differs in deviations)

    def _deviations(self, run: Run, expected: Expected) -> list[Deviation]:
        pairs = [*zip(run.results, expected.results, strict=False), *run.touched(expected)]
        return [deviation(found, wanted, self._op.tolerances) for found, wanted in pairs]

    def _workspace(self, batch: Batch, expected: Expected) -> None:
        largest = batch.numbers is None or len(batch.numbers) in (sizes(self._op)[-1], ROWS_OF_LARGE[-1])
        if self._kernel.workspace is None or not largest or row_count(self._op, batch.args) == 0:
            return  # plans ask at the largest step
        self._done.add("workspace")
        try:
            stated = self._kernel.workspace(describe_call(self._op, batch.args, self._device))
        except Exception as error:
            self._find("workspace", batch, f"asking for it raised {describe(error)}")
            return
        if not isinstance(stated, int) or stated < 0:
            self._find("workspace", batch, f"it is no number of bytes: {stated!r}")
            return
        run = self._run(batch, expected.results)
        taken = devices.peak_allocation(run.launch, self._device)
        if taken > stated:
            self._find("workspace", batch, f"it states {stated} bytes and allocates {taken}")

    def _invariance(self, batch: Batch) -> None:
        if not self._kernel.batch_invariant or not self._op.rows or batch.numbers is not None:
            return
        self._done.add("invariance")

        def run(some: Batch) -> Run | None:
            if supported(self._kernel, describe_call(self._op, some.args, self._device)) is not None:
                return None
            self._say(f"{some}, for batch invariance")
            made = self._run(some, faked(self._op, some.args))
            made()
            return made

        if (complaint := odd_one_out(self._op, batch, run)) is not None:
            self._find("invariance", batch, complaint)

    def _graph(self, batch: Batch, expected: Expected) -> None:
        # Where the op declares rows, batches of them are what a recorded step is made of: one row a sequence.
        single = batch.numbers if self._op.rows else True
        if not self._kernel.graph_safe or not devices.records(self._device) or not single:
            return
        self._done.add("graph")
        self._say(f"{batch}, recording it")
        direct, recorded = self._run(batch, expected.results), self._run(batch, expected.results)
        direct()
        try:
            replay = devices.GraphRecorder(self._device).record(recorded.launch)
        except Exception as error:
            self._find("graph", batch, f"can't be recorded: {describe(error)}")
            return
        replay()
        devices.synchronize(self._device)
        if not _equal(direct.results, recorded.results):
            self._find("graph", batch, "its recording gives another result")

    def _references(self) -> None:
        """By now all tensors of the runs are gone, but for those that somebody keeps."""
        self._done.add("references")
        if any(held() for _, _, held in self._kept):
            gc.collect()
        for batch, name, held in self._kept:
            if held():
                self._find("references", batch, f"something keeps {name} after the call")

    def _measure(self) -> None:
        if self._largest is None:
            return
        batch = self._largest[1]
        self._say(f"{batch}, timing it")
        expected = Expected(self._op, batch.args)
        mine = self._run(batch, expected.results)
        theirs = Run(self._op, reference_kernel(self._op), None, batch.args, expected.results, self._device)
        self._speed = _least(theirs, self._device) / _least(mine, self._device)
        mine.restore()
        mine()
        for differs in self._deviations(mine, expected):
            if not differs.excess <= 1:
                self._find("determinism", batch, f"after many calls on what it packed: {differs}")

    def _run(self, batch: Batch, results: tuple[Tensor, ...]) -> Run:
        return Run(self._op, self._function, self._pack, batch.args, results, self._device)

    def _find(self, check: str, batch: Batch | str, message: str) -> None:
        self._findings.setdefault(check, Finding(check, str(batch), message))


def _equal(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    return all(same(one, other) for one, other in zip(some, others, strict=True))


def _least(run: Run, device: torch.device) -> float:
    times: list[float] = []
    deadline = time.perf_counter() + _BUDGET
    while len(times) < _LEAST_RUNS or (len(times) < _RUNS and time.perf_counter() < deadline):
        start = time.perf_counter()
        run.launch()
        devices.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
