"""``bestiary doctor``: what this installation is made of, what can run here, and what is wrong."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import typer

from bestiary.core.cli.options import Json, print_json

if TYPE_CHECKING:
    from bestiary.core.doctor import Report

_MARKS = {"ok": "  ", "note": "- ", "warning": "! ", "error": "x ", "failed": "x "}


def doctor(ctx: typer.Context, json: Json = False) -> None:
    """Show the environment, devices, plugins and kernels, and what is wrong with them.

    Exits with 0 if everything can be used, 69 if something can't, 70 if a part could not be examined.
    """
    from bestiary.core.cli.session import session_of
    from bestiary.core.doctor import examine

    session = session_of(ctx)
    report = examine(lambda: session.host, session.candidates)
    if json:
        print_json(report.as_dict())
    else:
        _print(report)
    if report.exit_status:
        raise typer.Exit(report.exit_status)


def _print(report: Report) -> None:
    from bestiary.core.cli.report import width

    for section in report.sections:
        print(f"{section.name}")
        column = min(24, max((len(finding.subject) for finding in section.findings), default=0))
        for finding in section.findings:
            head = f"  {_MARKS[finding.level]}{finding.subject:<{column}}  "
            after = " " * (column + 6)
            text = " ".join(finding.text.split())
            print(textwrap.fill(text, width(), initial_indent=head, subsequent_indent=after, break_on_hyphens=False))
        if not section.findings:
            print("    nothing to report")
        print()
    bad = [one for section in report.sections for one in section.findings if one.level in ("error", "failed")]
    odd = [one for section in report.sections for one in section.findings if one.level == "warning"]
    if bad:
        names = ", ".join(dict.fromkeys(one.subject for one in bad))
        print(f"{len(bad)} {'problem' if len(bad) == 1 else 'problems'}: {names}")
    else:
        print("everything can be used" + (f"; {len(odd)} warnings" if odd else ""))
