"""Checks in a process of their own. Here are both sides: what the parent asks, and what the child answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from bestiary.core.conformance.kernel_cases import KernelCase, OpCase
from bestiary.core.conformance.kernel_check import KernelCheck
from bestiary.core.conformance.kernel_report import Finding, KernelReport
from bestiary.core.conformance.op_check import op_problem
from bestiary.core.isolated import Died, Isolated
from bestiary.core.plugins import PluginHost
from bestiary.core.program.calls import REFERENCE, load_op

#: Seconds without a sign of life: compilers of kernels need some.
TIMEOUT = 120.0


@dataclass(frozen=True)
class Job:
    """A kernel to check, or the declaration of an op, whose ``kernel`` is ``reference``, or to import one, with none;
    plugins as a child loads them.
    """

    plugins: tuple[str, ...]
    prefer: tuple[tuple[str, str], ...]
    op: str
    kernel: str
    distribution: str
    device: str
    dtype: str
    waived: Mapping[str, str]


class KernelChecker:
    """Checks a host's kernels and ops in a child process; its death is a finding, and the next one gets a new child.

    Args:
        timeout: seconds without a sign of life after which a kernel counts as hanging.
    """

    def __init__(self, host: PluginHost, *, timeout: float = TIMEOUT) -> None:
        self._host = host
        self._child = Isolated(f"{__name__}:serve", timeout=timeout)
        #: Reports that it made so far.
        self.answered = 0

    def kernel(self, case: KernelCase, waived: Mapping[str, str] | None = None) -> KernelReport:
        """Check a kernel in a dtype."""
        origin = self._host.origin(case.kernel).distribution
        dtype = str(case.dtype).removeprefix("torch.")
        return self._report(self._job(case.op.name, case.kernel.name, origin, case.device, dtype, waived or {}))

    def op(self, case: OpCase, waived: Mapping[str, str] | None = None) -> KernelReport:
        """Check an op's declaration, in all of its dtypes."""
        origin = self._host.origin(self._host.op(case.op.name)).distribution
        return self._report(self._job(case.op.name, REFERENCE, origin, "cpu", "", waived or {}))

    def crash(self, op: str) -> str | None:
        """What becomes of the child that imports the declaration of an op of this name, if that ends it."""
        try:
            self._child.run(self._job(op, "", "", "cpu", "", {}))
        except Died as death:
            return None if death.how.startswith("raised") else _told(death)
        return None

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def __enter__(self) -> KernelChecker:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _job(self, op: str, kernel: str, origin: str, device: str, dtype: str, waived: Mapping[str, str]) -> Job:
        plugins, prefer = self._host.plugin_names(), tuple(self._host.preferences().items())
        return Job(plugins, prefer, op, kernel, origin, device, dtype, dict(waived))

    def _report(self, job: Job) -> KernelReport:
        self.answered += 1
        try:
            return KernelReport.from_dict(self._child.run(job))
        except Died as death:
            found = (Finding("crash", death.at, _told(death)),)
            return KernelReport(
                job.op, job.kernel, job.distribution, job.device, job.dtype, findings=found, waived=job.waived
            )


def crash_report(op: str, distribution: str, how: str) -> KernelReport:
    """Of an op whose declaration ends the process that imports it."""
    found = (Finding("crash", "importing its declaration", how),)
    return KernelReport(op, REFERENCE, distribution, "cpu", "", findings=found)


def _told(death: Died) -> str:
    return "\n    ".join([f"the process {death.how}", *death.last_words])


def serve(job: Job, say: Callable[[str], None]) -> dict[str, Any]:
    """In the child: do a job; its report as a dict."""
    host = _host(job.plugins, job.prefer)
    op = load_op(job.op, host)
    if not job.kernel:
        return {}
    if job.kernel == REFERENCE:
        return op_report(OpCase(op), say, job.distribution, job.waived).as_dict()
    case = KernelCase(op, host.kernel(job.op, job.kernel), job.device, getattr(torch, job.dtype))
    with torch.no_grad():
        return KernelCheck(case, say=say, distribution=job.distribution, waived=job.waived).report().as_dict()


def op_report(
    case: OpCase,
    say: Callable[[str], None] = lambda text: None,
    distribution: str = "",
    waived: Mapping[str, str] | None = None,
) -> KernelReport:
    """An op's declaration checked in this process, in the form of a kernel's report."""
    problem = op_problem(case.op, say)
    findings = () if problem is None else (Finding("declaration", "", problem),)
    return KernelReport(
        case.op.name, REFERENCE, distribution, "cpu", "",
        ran=1, done=("declaration",), findings=findings, waived=waived or {},
    )  # fmt: skip


@lru_cache(maxsize=1)
def _host(plugins: tuple[str, ...], prefer: tuple[tuple[str, str], ...]) -> PluginHost:
    return PluginHost.load(only=plugins, prefer=dict(prefer))
