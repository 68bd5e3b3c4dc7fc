"""``bestiary new``: a plugin project from a template."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.core.cli.options import Json, print_json

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost
    from bestiary.core.scaffold.draft import Draft
    from bestiary.core.scaffold.render import Check, Template

app = typer.Typer(help="Begin a plugin: a complete project from a template.", no_args_is_help=True)

Name = Annotated[str | None, typer.Argument(help="The plugin's name: lower-case letters, digits and underscores.")]
Into = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Make DIR/NAME, as this repository lays out models and plugins, not ./bestiary-NAME."
    ),
]
Description = Annotated[str | None, typer.Option(help="The project in one line.")]
Author = Annotated[str | None, typer.Option(help="For the license and the metadata.")]
License = Annotated[str | None, typer.Option(help="Apache-2.0, MIT or BSD-3-Clause.")]
NoInput = Annotated[bool, typer.Option("--no-input", help="Ask nothing: options and defaults decide.")]


@app.command("model")
def model(
    ctx: typer.Context,
    name: Name = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="HF_DIR", help="Draft it from this model's config.json and safetensors headers."
        ),
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="The model's class in config.json's architectures.")] = None,
    description: Description = None,
    author: Author = None,
    license: License = None,
    into: Into = None,
    no_input: NoInput = False,
    json: Json = False,
) -> None:
    """A model plugin that works: a Llama to change, or a draft of the model in --from."""
    from bestiary.core.cli.session import session_of
    from bestiary.core.scaffold import names
    from bestiary.core.scaffold.draft import draft
    from bestiary.core.scaffold.render import Template

    host, template = session_of(ctx).host, Template.of("model")
    drafted = draft(source, architecture) if source is not None else None
    given: dict[str, Any] = {"architecture": architecture, "name": name}
    if drafted is not None:
        given = {"name": name or drafted.name, "architecture": architecture or drafted.architecture}
        given["_draft"] = {**template.values["_draft"], **drafted.values}
    given |= {"description": description, "author": author, "license": license}

    def served(answer: str) -> None:
        names.check_architecture(answer)
        names.check_architecture_free(answer, host)

    made = _make(template, given, host, into=into, ask=not no_input, checks={"architecture": served})
    _report(made, drafted, json)


@app.command("kernel")
def kernel(
    ctx: typer.Context,
    name: Name = None,
    op: Annotated[str | None, typer.Option(help="The op: rms_norm, add_rms_norm or gated_activation.")] = None,
    triton: Annotated[bool | None, typer.Option(help="Bring a triton kernel for GPUs too.")] = None,
    description: Description = None,
    author: Author = None,
    license: License = None,
    into: Into = None,
    no_input: NoInput = False,
    json: Json = False,
) -> None:
    """A kernel plugin that works: an op of the SDK in torch, and in triton if you like."""
    from bestiary.core.cli.session import session_of
    from bestiary.core.scaffold.names import check_kernel_free
    from bestiary.core.scaffold.render import Template

    host = session_of(ctx).host
    given = {"name": name, "op": op, "triton": triton, "description": description, "author": author, "license": license}
    free = partial(check_kernel_free, host=host)
    made = _make(Template.of("kernel"), given, host, into=into, ask=not no_input, free=free)
    _report(made, None, json)


@app.command("op")
def op(
    ctx: typer.Context,
    name: Name = None,
    op: Annotated[str | None, typer.Option(help="The op's name, without the plugin's before it.")] = None,
    description: Description = None,
    author: Author = None,
    license: License = None,
    into: Into = None,
    no_input: NoInput = False,
    json: Json = False,
) -> None:
    """An op plugin that works: an op of your own with its reference, its test inputs and a kernel."""
    from bestiary.core.cli.session import session_of
    from bestiary.core.scaffold.names import check_namespace_free, check_op
    from bestiary.core.scaffold.render import Template

    host = session_of(ctx).host
    given = {"name": name, "op": op, "description": description, "author": author, "license": license}
    free = partial(check_namespace_free, host=host)
    made = _make(Template.of("op"), given, host, into=into, ask=not no_input, checks={"op": check_op}, free=free)
    _report(made, None, json)


def _make(
    template: Template,
    given: Mapping[str, Any],
    host: PluginHost,
    *,
    into: Path | None,
    ask: bool,
    checks: Mapping[str, Check] | None = None,
    free: Check | None = None,
) -> dict[str, Any]:
    """Ask what is not given and write the project; what to tell about it. ``free`` checks the name, after the common checks."""
    from bestiary.core.errors import MissingInputError
    from bestiary.core.scaffold import names
    from bestiary.core.scaffold.render import answers, api_range, write
    from bestiary.core.version import __version__

    if into is not None and not into.is_dir():
        raise MissingInputError("E-NEW-INTO", f"--into {into.name}", "is no directory")

    def check_name(answer: str) -> None:
        names.check_name(answer)
        names.check_free(answer, host)
        if free is not None:
            free(answer)

    fixed = {"_requires": api_range(__version__), "_in_repository": into is not None}
    said = {key: value for key, value in given.items() if value is not None}
    values = answers(
        template,
        {**said, **fixed},
        checks={"name": check_name, "author": names.check_line, "description": names.check_line, **(checks or {})},
        ask=ask,
    )
    target = Path(values["__distribution"]) if into is None else into / values["name"]
    files = write(template, values, target)
    return {"name": values["name"], "distribution": values["__distribution"], "directory": str(target), "files": files}


def _report(made: dict[str, Any], drafted: Draft | None, json: bool) -> None:
    if drafted is not None:
        made |= {"placed": drafted.placed, "tensors": drafted.total, "left": drafted.left, "defaults": drafted.defaults}
    if json:
        print_json(made)
        return
    print(f"{made['distribution']} is in {made['directory']}: {len(made['files'])} files")
    if drafted is not None:
        print(f"{drafted.placed} of {drafted.total} tensors have their place in the weight map")
        if drafted.left:
            print("left to write (README.md lists it too):")
        for line in drafted.left:
            print(f"  - {line.replace('`', '')}")
        if drafted.defaults:
            print("left out of config.json:")
        for line in drafted.defaults:
            print(f"  - {line.replace('`', '')}")
    print(f"next: cd {made['directory']} && pip install -e '.[test]' && pytest")
