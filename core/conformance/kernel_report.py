"""What came of checking a kernel or an op: plain data, so that it crosses from one process to another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

#: The checks of a kernel by name, as findings and waivers name them, and what each looks for.
CHECKS: Mapping[str, str] = {
    "load": "it can be imported and has the op's parameters",
    "supports": "supports answers None or a reason, raises nothing, and a yes is true",
    "crash": "the process lives and answers in time",
    "fill": "every element of out is written",
    "bands": "nothing beside out and the changed tensors is written, nor what the reference leaves alone in them",
    "inputs": "no argument changes but those that the op says, nor what pack made of the constants",
    "result": "it returns nothing, and shapes, strides, dtypes and memory of what it was given stay",
    "state": "what the whole process shares stays: default dtype and device, gradients, threads, precision, random numbers",
    "references": "no argument or result is kept after the call",
    "tolerance": "the results are near to the reference's",
    "determinism": "one input gives one result, to the bit, also when it is called again and again on what it packed",
    "values": "other values in the same memory give the results of those, not of the values before",
    "invariance": "if batch_invariant is claimed: a row's result is the same to the bit in every batch",
    "workspace": "if workspace is stated: no more is allocated",
    "graph": "if graph_safe is claimed, on devices that record: a recording gives the same result",
    "declaration": "of an op: it is documented, and reference and fake agree",
}

Verdict = Literal["pass", "fail", "declined"]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: the check, the call that showed it, and what was seen."""

    check: str
    case: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.case}: {self.message}" if self.case else f"{self.check}: {self.message}"


@dataclass(frozen=True)
class KernelReport:
    """One kernel of an op (``reference``: the op's declaration) on a device, in a dtype.

    Args:
        ran: calls that were run.
        empty: those of them that ask for nothing.
        declined: reason → calls that ``supports`` said no to.
        worst: largest error in units of the tolerance; None if nothing was compared.
        invariant: whether the kernel claims to be batch-invariant.
        workspace: whether the kernel states one.
        done: the checks that had something to look at.
        speed: the reference's time over the kernel's; None where it was not measured.
        findings: what is wrong, the first of each check.
        waived: check → the author's reason for not being held to it.
    """

    op: str
    kernel: str
    distribution: str
    device: str
    dtype: str
    ran: int = 0
    empty: int = 0
    declined: Mapping[str, int] = field(default_factory=dict)
    worst: float | None = None
    invariant: bool = False
    workspace: bool = False
    done: tuple[str, ...] = ()
    speed: float | None = None
    findings: tuple[Finding, ...] = ()
    waived: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As tests are named."""
        where = f"-{self.device}-{self.dtype}" if self.dtype else f"-{self.device}"
        return f"{self.op}={self.kernel}{where}"

    @property
    def verdict(self) -> Verdict:
        """``declined`` where nothing ran, or nothing but empty calls: that proves nothing."""
        if any(finding.check not in self.waived for finding in self.findings):
            return "fail"
        return "pass" if self.ran > self.empty or self.findings else "declined"

    def answer(self, check: str) -> str:
        """``yes`` or ``NO`` for a check that was made, a dash for one that had nothing to look at."""
        if any(finding.check == check for finding in self.findings):
            return "NO (waived)" if check in self.waived else "NO"
        return "yes" if check in self.done else "-"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; numbers that JSON lacks are words."""
        raw = asdict(self)
        worst = None if self.worst is None else self.worst if math.isfinite(self.worst) else "infinite"
        return {**raw, "worst": worst, "verdict": self.verdict}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> KernelReport:
        """What :meth:`as_dict` made."""
        values = {name: raw[name] for name in cls.__dataclass_fields__}
        worst = float("inf") if raw["worst"] == "infinite" else raw["worst"]
        findings = tuple(Finding(**finding) for finding in raw["findings"])
        return cls(**{**values, "worst": worst, "findings": findings, "done": tuple(raw["done"])})


#: The columns of the table.
HEADINGS = (
    "kernel", "dtype", "cases", "worst error", "deterministic", "batch invariant", "bands", "filled", "workspace", "speed",
    "verdict",
)  # fmt: skip


def rows(reports: Sequence[KernelReport]) -> list[tuple[str, ...]]:
    """The table's rows; errors in units of the tolerance, speed as a multiple of the reference's."""
    return [
        (
            f"{one.op}={one.kernel}",
            one.dtype or "-",
            f"{one.ran}" + (f", declined {sum(one.declined.values())}" if one.declined else ""),
            "-" if one.worst is None else f"{one.worst:.2f}",
            one.answer("determinism"),
            _invariance(one),
            one.answer("bands"),
            one.answer("fill"),
            one.answer("workspace") if one.workspace else "not stated",
            "-" if one.speed is None else f"{one.speed:.2f}x",
            _verdict(one),
        )
        for one in reports
    ]


def remarks(reports: Sequence[KernelReport]) -> list[str]:
    """Below the table: what is wrong, what was waived and why, and why calls were declined."""
    lines: list[str] = []
    told: set[tuple[str, str, str]] = set()
    for one in reports:
        for finding in one.findings:
            first, *rest = finding.message.splitlines()  # a crash tells where; once for all dtypes
            known = (one.op, one.kernel, finding.message) in told
            told.add((one.op, one.kernel, finding.message))
            lines.append(f"{one}: {replace(finding, message=first) if known and rest else finding}")
        lines += [f"{one}: {check} is waived: {reason}" for check, reason in one.waived.items()]
        lines += [f"{one}: ran only empty calls"] if 0 < one.ran == one.empty else []
        lines += [f"{one}: declined {count}: {reason}" for reason, count in one.declined.items()]
    return lines


def _verdict(report: KernelReport) -> str:
    """With how much of it was seen, where the kernel declined calls: the others run on another one."""
    declined = sum(report.declined.values())
    partly = report.verdict == "pass" and declined
    return f"pass, {report.ran} of {report.ran + declined} calls" if partly else report.verdict


def _invariance(report: KernelReport) -> str:
    if not report.invariant:
        return "not claimed"
    answer = report.answer("invariance")
    return "claimed, not checked" if answer == "-" else "claimed, true" if answer == "yes" else f"claimed, {answer}"
