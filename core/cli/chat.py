"""``bestiary chat``: a conversation, typed or piped in."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.core.cli.options import Json, KvDtype, MemoryLimit, Quantize, Sampling, Tokenizer, spread

if TYPE_CHECKING:
    from bestiary import LLM, SamplingParams

HELP = "/reset begins a new conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer."


@spread
def chat(
    ctx: typer.Context,
    engine: Annotated[str, typer.Argument(help="The engine.")],
    *,
    system: Annotated[str | None, typer.Option(help="A system message in front.")] = None,
    sampling: Sampling,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    quantization: Quantize = None,
    kv_dtype: KvDtype = None,
    memory_limit: MemoryLimit = None,
    tokenizer: Tokenizer = None,
    json: Json = False,
) -> None:
    """Talk to a model; without a terminal, each line of stdin is a message."""
    from bestiary.core.cli import answer
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.text.tokenizer import tokenizer_file

    session, params = session_of(ctx), sampling.params()
    directory = answer.require_engine(engine, session)
    tokenizer_file(tokenizer or directory)
    with (
        progress(silent=json) as steps,
        answer.open_llm(
            directory,
            session,
            steps,
            device=device,
            tokenizer=tokenizer,
            memory_limit=memory_limit,
            quantization=quantization,
            kv_dtype=kv_dtype,
        ) as llm,
    ):
        converse(llm, params, system=system, json=json)


def converse(llm: LLM, params: SamplingParams, *, system: str | None = None, json: bool = False) -> None:
    """Read messages and stream answers until the input ends."""
    from bestiary.core.cli.answer import stream

    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    if sys.stdin.isatty():
        _enable_editing()
        print(HELP, file=sys.stderr)
    while (line := _read()) is not None:
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            messages = list(opening)
        elif line == "/help":
            print(HELP, file=sys.stderr)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                got = stream(llm, messages, params, silent=json)
            except KeyboardInterrupt:
                # In a terminal Ctrl-C takes back the question; elsewhere it ends the program as usual.
                if not sys.stdin.isatty():
                    raise
                messages.pop()
                print(file=sys.stderr)
                continue
            messages.append({"role": "assistant", "content": got.text})
            if json:
                _print_line({"message": line, **got.as_dict()})


def _read() -> str | None:
    try:
        if sys.stdin.isatty():
            return input("> ").strip()
        line = sys.stdin.readline()
        return line.strip() if line else None
    except EOFError:
        print(file=sys.stderr)
        return None


def _enable_editing() -> None:
    try:
        import readline  # noqa: F401  its import gives input() line editing and history
    except ImportError:
        return


def _print_line(value: dict[str, object]) -> None:
    from json import dumps

    print(dumps(value, ensure_ascii=False), flush=True)
