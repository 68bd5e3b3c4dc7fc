"""``bestiary generate``: answers to many prompts at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.core.cli.options import Json, KvDtype, MemoryLimit, Quantize, Sampling, Tokenizer, print_json, spread

if TYPE_CHECKING:
    from bestiary import CompletionOutput, RequestOutput


@spread
def generate(
    ctx: typer.Context,
    engine: Annotated[str, typer.Argument(help="The engine.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts, each one request.")] = None,
    *,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A prompt a line; in .jsonl, a string or an object with 'prompt' (text) or 'prompt_token_ids' (a list).",
        ),
    ] = None,
    sampling: Sampling,
    beam_width: Annotated[
        int | None, typer.Option(metavar="N", help="Search for the likeliest answer with N beams, and draw nothing.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    quantization: Quantize = None,
    kv_dtype: KvDtype = None,
    capacity: Annotated[
        str | None,
        typer.Option(help="no-evict, or max-utilization: run more at a time, and compute some of it twice."),
    ] = None,
    memory_limit: MemoryLimit = None,
    tokenizer: Tokenizer = None,
    json: Json = False,
) -> None:
    """Complete prompts as they are, without a chat template.

    A model without a tokenizer takes token ids, and its answers are printed as token ids.
    """
    from bestiary.core.cli import answer
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.errors import INTERNAL, UsageError
    from bestiary.core.progress import bearing

    session = session_of(ctx)
    params = sampling.params() if beam_width is None else sampling.beams(beam_width)
    everything: list[Any] = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not everything:
        raise UsageError("E-CLI-PROMPT", "PROMPT", "no prompt", hint="give prompts as arguments, or --prompts FILE")
    directory = answer.require_engine(engine, session)
    with (
        progress(silent=json) as steps,
        answer.open_llm(
            directory,
            session,
            steps,
            tokenizer=tokenizer,
            device=device,
            quantization=quantization,
            kv_dtype=kv_dtype,
            memory_limit=memory_limit,
            capacity=capacity,
        ) as llm,
    ):
        shown = len(everything) > 1 and not json and bearing(sys.stderr).isatty()
        outputs = llm.generate(everything, params, use_tqdm=shown)
        as_text = llm.tokenizer is not None
    if json:
        print_json([_as_dict(output) for output in outputs])
    else:
        for number, output in enumerate(outputs):
            print(f"{'' if number == 0 else chr(10)}{_shown(output, as_text)}")
    failed = [output for output in outputs if output.outputs[0].finish_reason == "error"]
    if failed:
        stderr = bearing(sys.stderr)
        for output in failed:
            print(f"request {output.request_id} failed: {output.outputs[0].stop_reason}", file=stderr)
        raise typer.Exit(INTERNAL)


def read_prompts(path: Path) -> list[Any]:
    """The prompts of a file: a line each; in ``.jsonl``, strings, ``{"prompt": …}`` or ``{"prompt_token_ids": […]}``.

    Raises:
        MissingInputError: no such file.
        DataError: a line that isn't a prompt, by number.
    """
    from bestiary.core.errors import DataError, MissingInputError

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingInputError("E-CLI-PROMPTS", path.name, "no such file") from None
    except OSError as error:
        raise MissingInputError("E-CLI-PROMPTS", path.name, f"can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError("E-CLI-PROMPTS", path.name, "not UTF-8 text") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return (
        [_parse(path, number, line) for number, line in numbered]
        if path.suffix == ".jsonl"
        else [x for _, x in numbered]
    )


def _parse(path: Path, number: int, line: str) -> Any:
    import json

    from bestiary.core.errors import DataError

    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict):
        if isinstance(value.get("prompt"), str):
            return value["prompt"]
        if isinstance(value.get("prompt_token_ids"), list):
            return {"prompt_token_ids": value["prompt_token_ids"]}
    if isinstance(value, str):
        return value
    raise DataError(
        "E-CLI-PROMPTS", f"{path.name}, line {number}", "not a prompt", found=line[:60],
        expected='a JSON string, {"prompt": "…"} or {"prompt_token_ids": […]}',
    )  # fmt: skip


def _shown(output: RequestOutput, as_text: bool) -> str:
    if not as_text:
        return " ".join(map(str, output.outputs[0].token_ids))
    return (output.prompt or "") + output.outputs[0].text


def _as_dict(output: RequestOutput) -> dict[str, Any]:
    first, *others = (_answer(one) for one in output.outputs)
    found = {"prompt": output.prompt, "prompt_tokens": len(output.prompt_token_ids), **first}
    return {**found, "others": others} if others else found


def _answer(one: CompletionOutput) -> dict[str, Any]:
    said: dict[str, Any] = {"text": one.text, "token_ids": list(one.token_ids), "finish_reason": one.finish_reason}
    if one.finish_reason == "error":
        said["error"] = one.stop_reason
    return said if one.score is None else {**said, "score": one.score}
