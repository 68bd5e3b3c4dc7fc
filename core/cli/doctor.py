"""``bestiary doctor``: what this installation is made of, what can run here, and what is wrong."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.core.cli.options import Building, Json, print_json, spread
from bestiary.core.errors import UsageError

if TYPE_CHECKING:
    from bestiary.core.doctor import Report, Section

_MARKS = {"ok": "  ", "note": "- ", "warning": "! ", "error": "x ", "failed": "x "}


@spread
def doctor(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A local model that is to run here: HF directory, GGUF file, hub id, checkpoint or engine."
        ),
    ] = None,
    *,
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Run each kernel beside its reference, for 5 seconds.")
    ] = True,
    building: Building,
    json: Json = False,
) -> None:
    """Show the environment, devices, plugins and kernels, and what is wrong with them; with MODEL, whether it fits.

    Exits with 0 if everything can be used, 69 if something can't, 70 if a part could not be examined.
    """
    from bestiary.core.cli.session import session_of
    from bestiary.core.doctor import examine

    session, said = session_of(ctx), building.said()
    if said and model is None:
        found = ", ".join("--" + name.replace("_", "-") for name in said)
        raise UsageError("E-CLI-DOCTOR", "MODEL", "is missing, and build options are about one", found=found)
    shown = {} if json else {"each": _print_section}
    report = examine(lambda: session.host, session.candidates, model, said, tests=self_test, **shown)
    if json:
        from bestiary.core.doctor.document import document

        print_json(document(report).as_dict())
    else:
        _print_verdict(report)
    if report.exit_status:
        raise typer.Exit(report.exit_status)


def _print_section(section: Section) -> None:
    from bestiary.core.cli.report import width

    print(f"{section.name}")
    column = min(24, max((len(finding.subject) for finding in section.findings), default=0))
    for finding in section.findings:
        head = f"  {_MARKS[finding.level]}{finding.subject:<{column}}  "
        after = " " * (column + 6)
        text = " ".join(finding.text.split())
        print(textwrap.fill(text, width(), initial_indent=head, subsequent_indent=after, break_on_hyphens=False))
    if not section.findings:
        print("    nothing to report")
    print(flush=True)


def _print_verdict(report: Report) -> None:
    bad = [one for section in report.sections for one in section.findings if one.level in ("error", "failed")]
    odd = [one for section in report.sections for one in section.findings if one.level == "warning"]
    if bad:
        names = ", ".join(dict.fromkeys(one.subject for one in bad))
        print(f"{len(bad)} {'problem' if len(bad) == 1 else 'problems'}: {names}")
    else:
        print("everything can be used" + (f"; {len(odd)} {'warning' if len(odd) == 1 else 'warnings'}" if odd else ""))
