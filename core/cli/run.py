"""``bestiary run``: from any model to an answer."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bestiary.core.cli.options import Building, Json, MemoryLimit, Sampling, Tokenizer, print_json, spread


@spread
def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="HF directory, GGUF file, hub id, checkpoint or engine.")],
    prompt: Annotated[str | None, typer.Argument(help="The prompt; without it, stdin or a conversation.")] = None,
    *,
    raw: Annotated[bool, typer.Option("--raw", help="Don't apply the model's chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message in front.")] = None,
    convert_dtype: Annotated[str, typer.Option(help="Dtype of the converted weights.")] = "auto",
    sampling: Sampling,
    building: Building,
    memory_limit: MemoryLimit = None,
    tokenizer: Tokenizer = None,
    json: Json = False,
) -> None:
    """Convert, verify, build and generate, reusing what the cache holds."""
    from bestiary.core.cli import answer
    from bestiary.core.cli.chat import converse
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.errors import UsageError
    from bestiary.core.home import bytes_of
    from bestiary.core.opening import check_built
    from bestiary.core.prepare import prepare
    from bestiary.core.text.tokenizer import tokenizer_file

    session, params, options = session_of(ctx), sampling.params(), building.options()
    if memory_limit is not None:
        bytes_of(memory_limit, "memory_limit")  # refused before anything is converted
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise UsageError("E-CLI-PROMPT", "PROMPT", "neither an argument nor anything on stdin")
    if tokenizer is not None:
        tokenizer_file(tokenizer)
    with progress(silent=json) as steps:
        engine = prepare(
            model,
            host=session.host,
            options=options,
            convert_dtype=convert_dtype,
            needs_tokenizer=tokenizer is None,
            progress=steps,
        )
        check_built(engine, building.said())
        templated = not raw and answer.has_chat_template(*([tokenizer] if tokenizer else []), engine)
        if prompt is not None and system and not templated:
            raise UsageError("E-CLI-SYSTEM", "--system", "this prompt goes to the model without a chat template")
        with answer.open_llm(
            engine, session, steps, tokenizer=tokenizer, memory_limit=memory_limit, **building.at_load()
        ) as llm:
            if prompt is None:
                converse(llm, params, system=system, json=json)
                return
            question: answer.Prompt = answer.conversation(prompt, system) if templated else prompt
            got = answer.stream(llm, question, params, silent=json)
    if json:
        print_json({"model": model, "engine": str(engine), "prompt": prompt, **got.as_dict()})
    else:
        got.show_cost()
