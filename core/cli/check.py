"""``bestiary check``: the conformance kit, for an installed plugin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.core.cli.options import print_json

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost
    from bestiary.spec import Model


def check(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, or a distribution: then all of its models.")],
    long: Annotated[bool, typer.Option("--long", help="Run every check on every config.")] = False,
    config: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this config of the class; repeatable.")
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Write the outcomes as JSON to a file, or - to stdout alone.")
    ] = None,
) -> None:
    """Run a model plugin's conformance class, and print what every check found."""
    from bestiary.core.checkpoint.transaction import check_file
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.conformance.model_run import run
    from bestiary.core.conformance.model_table import table
    from bestiary.core.errors import INTERNAL

    if json not in (None, "-"):
        check_file(Path(str(json)))
    session = session_of(ctx)
    reports = []
    with progress(silent=json == "-") as steps:
        for model in _named(name, session.host):
            report = run(
                model,
                session.host,
                plugins=session.plugins,
                prefer=session.preferences,
                long=long,
                configs=config or (),
                progress=steps,
            )
            reports.append(report)
    if json != "-":
        print("\n\n".join(table(report) for report in reports))
    if json is not None:
        _write(json, [report.as_dict() for report in reports])
    if not all(report.passed for report in reports):
        raise typer.Exit(INTERNAL)


def _named(name: str, host: PluginHost) -> list[Model]:
    """The model of this name, or the models of the distribution."""
    from packaging.utils import canonicalize_name

    from bestiary.core.errors import PluginError

    models = host.models()
    if any(model.name == name for model in models):
        return [host.model(name)]
    wanted = canonicalize_name(name)
    if found := [model for model in models if canonicalize_name(host.origin(model).distribution) == wanted]:
        return found
    raise PluginError(
        "E-KIT-NAME",
        f"bestiary check {name}",
        "no plugin of that name brings a model",
        expected=", ".join(f"{model.name} ({host.origin(model).distribution})" for model in models) or "a model plugin",
        hint=_of_others(wanted, host)
        or "bestiary plugins shows what is installed; -p MODULE loads a plugin that is not",
    )


def _of_others(distribution: str, host: PluginHost) -> str | None:
    """Where a distribution has no models of its own: those that it installs."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        needed = {canonicalize_name(Requirement(line).name) for line in requires(distribution) or ()}
    except (PackageNotFoundError, ValueError):  # the second: no name at all
        return None
    brought = {host.origin(model).distribution for model in host.models()}
    found = sorted(name for name in brought if canonicalize_name(name) in needed)
    return f"check those that it installs: {', '.join(f'bestiary check {name}' for name in found)}" if found else None


def _write(target: str, reports: list[dict[str, object]]) -> None:
    from bestiary.core.checkpoint.files import json_bytes
    from bestiary.core.checkpoint.transaction import new_file

    if target == "-":
        print_json({"conformance": reports})
        return
    new_file(Path(target), json_bytes({"conformance": reports}))
