"""``bestiary``: global options, the commands, and what a failure turns into."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TextIO, cast

import typer
from typer.core import TyperCommand, TyperGroup

from bestiary.core.cli import (
    bench,
    build,
    cache,
    chat,
    check,
    check_kernel,
    convert,
    diff,
    doctor,
    export,
    failures,
    generate,
    kernels,
    lock,
    new,
    plan_memory,
    plugins,
    quality,
    quantize,
    run,
    trace,
    verify,
)
from bestiary.core.cli.session import Session, set_logging
from bestiary.core.errors import USAGE, BestiaryError
from bestiary.core.version import __version__

TERMINATED = 143
LOCK = "bestiary.lock"


class Commands(TyperGroup):
    """The built-in commands and those of plugins, whose apps are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names for ``--help``; a plugin that fails must not take the help away."""
        try:
            extra = [command.name for command in _session(ctx).host.commands()]
        except BestiaryError:
            extra = []
        return [*super().list_commands(ctx), *extra]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A built-in command, or a line for ``--help`` that stands for a plugin's."""
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        for command in _session(ctx).host.commands():
            if command.name == cmd_name:
                return TyperCommand(command.name, help=command.help, callback=lambda: None)
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that ``args`` begins with; a plugin's is imported here."""
        name = args[0]
        if super().get_command(ctx, name) is None and any(name == one for one in _claimed(ctx)):
            return name, plugin_command(_session(ctx), name), args[1:]
        found: Any = super().resolve_command(ctx, args)
        return found


def _session(ctx: Any) -> Session:
    """The session of a context; during ``--help``, where the callback has not run, from the options before it."""
    if isinstance(ctx.obj, Session):
        return ctx.obj
    said = ctx.params
    ctx.obj = Session(
        tuple(said.get("plugin") or ()),
        bool(said.get("strict_plugins")),
        tuple(said.get("prefer") or ()),
        _lock(bool(said.get("locked")), said.get("lock_file")),
    )
    return cast(Session, ctx.obj)


def _claimed(ctx: Any) -> set[str]:
    host = _session(ctx).host
    clashing = {conflict.name for conflict in host.conflicts() if conflict.kind == "command"}
    return clashing | {command.name for command in host.commands()}


def plugin_command(session: Session, name: str) -> Any:
    """The command that a plugin brings, imported."""
    from bestiary.core.plugins import resolve

    command = session.host.command(name)
    app = resolve(command.app, needed_by=f"command {name} ({session.host.origin(command)})")
    if not isinstance(app, typer.Typer):
        function, app = app, typer.Typer(add_completion=False)
        app.command(name, help=command.help)(function)
    return typer.main.get_command(app)


app = typer.Typer(
    cls=Commands,
    name="bestiary",
    help="A plugin-extensible model zoo for large language models.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _lock(locked: bool, file: Path | None) -> Path | None:
    return (file or Path(LOCK)) if locked or file else None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bestiary {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    ctx: typer.Context,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--plugin", metavar="MODULE", is_eager=True, help="Load this plugin module too; repeatable."
        ),
    ] = None,
    strict_plugins: Annotated[
        bool, typer.Option("--strict-plugins", is_eager=True, help="Fail if any plugin is broken.")
    ] = False,
    prefer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIST", is_eager=True, help="Which distribution has a name that several claim; repeatable."
        ),
    ] = None,
    locked: Annotated[
        bool, typer.Option("--locked", is_eager=True, help="Refuse plugins that are not as bestiary.lock has them.")
    ] = False,
    lock_file: Annotated[
        Path | None, typer.Option(metavar="FILE", is_eager=True, help="The lock for --locked, if not ./bestiary.lock.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    log_level: Annotated[
        str | None,
        typer.Option(metavar="LEVEL[,MODULE=LEVEL]", help="trace, debug, info, warning or error; else $BESTIARY_LOG."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    set_logging("debug" if debug and log_level is None else log_level)
    ctx.obj = Session(tuple(plugin or ()), strict_plugins, tuple(prefer or ()), _lock(locked, lock_file))


app.command("run")(run.run)
app.command("trace")(trace.trace)
app.command("convert")(convert.convert)
app.command("verify")(verify.verify)
app.command("build")(build.build)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("export")(export.export)
app.command("plugins")(plugins.plugins)
app.command("kernels")(kernels.kernels)
app.command("diff")(diff.diff)
app.command("check")(check.check)
app.command("check-kernel")(check_kernel.check_kernel)
app.command("doctor")(doctor.doctor)
app.command("lock")(lock.lock)
app.command("quality")(quality.quality)
app.command("quantize")(quantize.quantize)
app.command("plan-memory")(plan_memory.plan_memory)
app.add_typer(cache.app, name="cache")
app.add_typer(new.app, name="new")
app.add_typer(bench.app, name="bench")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script: run a command and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # As an exception, so that half-written targets are removed.
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(invoke(given))


def invoke(arguments: Sequence[str]) -> int:
    """Run a command line; the exit status."""
    try:
        status = _attempt(list(arguments))
        sys.stdout.flush()
        _let_go(sys.stderr)
    except BrokenPipeError:
        # The reader of our output left (`| head`); what Python still holds goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _attempt(arguments: list[str]) -> int:
    # Frames and colours are for people; without a terminal the help is plain, and rich is not even imported.
    app.rich_markup_mode = "rich" if sys.stdout.isatty() else None
    try:
        status = typer.main.get_command(app).main(args=arguments, prog_name="bestiary", standalone_mode=False)
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        # typer's own classes moved between versions; their names did not.
        name = type(error).__name__
        if name == "NoArgsIsHelpError":
            # With rich the help is on the screen already, and the message is empty.
            if text := cast(Any, error).format_message():
                print(text)
            return USAGE
        shown = KeyboardInterrupt() if name == "Abort" else error
        failures.show(shown, arguments)
        return failures.exit_status(shown)
    if status == failures.INTERRUPTED:
        failures.show(KeyboardInterrupt(), arguments)
    return status if isinstance(status, int) else 0


def _let_go(stream: TextIO | None) -> None:
    """What can't be written goes nowhere: at the interpreter's end it would turn the exit status into 120."""
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
