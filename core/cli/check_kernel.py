"""``bestiary check-kernel``: a distribution's kernels against the declarations of their ops."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.core.cli.options import print_json
from bestiary.core.errors import UNAVAILABLE

if TYPE_CHECKING:
    from bestiary.core.conformance.kernel_report import KernelReport
    from bestiary.core.conformance.kernel_select import Selection
    from bestiary.core.conformance.kernel_worker import KernelChecker

#: Seconds without a sign of life; compilers of kernels need some.
TIMEOUT = 120.0


def check_kernel(
    ctx: typer.Context,
    dist: Annotated[str, typer.Argument(metavar="DIST", help="A distribution, or a module given with -p.")],
    op: Annotated[str | None, typer.Option(help="Only the kernels of this op.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto for each that is here.")] = "auto",
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="End a kernel that shows no sign of life for so long.")
    ] = TIMEOUT,
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="The result as JSON; - is stdout.")
    ] = None,
) -> None:
    """Check a plugin's kernels and ops against the ops' declarations, in a process of their own."""
    from bestiary.core.checkpoint.files import json_bytes
    from bestiary.core.checkpoint.transaction import check_file, new_file
    from bestiary.core.cli.report import table
    from bestiary.core.cli.session import session_of
    from bestiary.core.conformance.kernel_report import HEADINGS, remarks, rows
    from bestiary.core.conformance.kernel_select import select
    from bestiary.core.conformance.kernel_worker import KernelChecker
    from bestiary.core.device import available, choose
    from bestiary.core.errors import UsageError

    if not timeout > 0:
        raise UsageError(
            "E-KERNEL-TIMEOUT", "--timeout", "is no time", found=f"{timeout:g}", expected="seconds above 0"
        )
    if json not in (None, "-"):
        check_file(Path(str(json)))
    host = session_of(ctx).host
    devices = available() if device == "auto" else (choose(device).type,)
    with KernelChecker(host, timeout=timeout) as checker:
        chosen = select(host, dist, checker.crash)
        chosen = chosen if op is None else chosen.only(op)
        reports = _checked(chosen, devices, checker, silent=json == "-")
    result = {"distribution": dist, "reports": [report.as_dict() for report in reports]}
    if json == "-":
        print_json(result)
    else:
        table(HEADINGS, rows(reports))
        for line in remarks(reports):
            print(line)
        if json is not None:
            new_file(Path(json), json_bytes(result))
    if (problem := _problem(reports)) is not None:
        print(f"bestiary: {dist}: {problem}", file=sys.stderr)
        raise typer.Exit(UNAVAILABLE)


def _checked(
    chosen: Selection, devices: tuple[str, ...], checker: KernelChecker, *, silent: bool
) -> list[KernelReport]:
    from bestiary.core.cli.report import progress
    from bestiary.core.conformance.kernel_worker import crash_report

    chosen.check_fusions()
    cases = chosen.kernels(devices)
    reports = [crash_report(op, chosen.name, how) for op, how in chosen.crashed.items()]
    with progress(silent=silent) as steps:
        steps.start("check", len(chosen.ops) + len(cases), "cases")
        for declared in chosen.ops:
            reports.append(checker.op(declared))
            steps.advance(1)
        for case in cases:
            reports.append(checker.kernel(case))
            steps.advance(1)
        steps.finish(f"ops: {len(chosen.ops)}, kernels: {len(chosen.registered)}, fusions: {len(chosen.fusions)}")
    return reports


def _problem(reports: Sequence[KernelReport]) -> str | None:
    """Why the distribution does not pass: a report that fails, or kernels of which none could run on these devices."""
    failed = sum(report.verdict == "fail" for report in reports)
    if failed:
        return f"{failed} of {len(reports)} reports fail"
    kernels = [report for report in reports if report.kernel != "reference"]
    return "no kernel of it runs here" if kernels and not any(report.ran > report.empty for report in kernels) else None
