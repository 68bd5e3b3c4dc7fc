"""``bestiary generate``: answers to many prompts at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.core.cli.options import Json, MemoryLimit, Sampling, print_json, spread

if TYPE_CHECKING:
    from bestiary import RequestOutput


@spread
def generate(
    ctx: typer.Context,
    engine: Annotated[str, typer.Argument(help="The engine.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts, each one request.")] = None,
    *,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A prompt a line; in .jsonl, a string or an object with 'prompt'."),
    ] = None,
    sampling: Sampling,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    memory_limit: MemoryLimit = None,
    json: Json = False,
) -> None:
    """Complete prompts as they are, without a chat template."""
    from bestiary.core.cli import answer
    from bestiary.core.cli.report import progress
    from bestiary.core.cli.session import session_of
    from bestiary.core.errors import UsageError

    session, params = session_of(ctx), sampling.params()
    everything: list[Any] = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not everything:
        raise UsageError("E-CLI-PROMPT", "PROMPT", "no prompt", hint="give prompts as arguments, or --prompts FILE")
    directory = answer.require_engine(engine, session)
    with (
        progress(silent=json) as steps,
        answer.open_llm(directory, session, steps, device=device, memory_limit=memory_limit) as llm,
    ):
        outputs = llm.generate(everything, params, use_tqdm=False)
    if json:
        print_json([_as_dict(output) for output in outputs])
    else:
        for number, output in enumerate(outputs):
            print(f"{'' if number == 0 else chr(10)}{_shown(output)}{output.outputs[0].text}")


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


def _shown(output: RequestOutput) -> str:
    return "" if output.prompt is None else output.prompt


def _as_dict(output: RequestOutput) -> dict[str, Any]:
    first = output.outputs[0]
    return {
        "prompt": output.prompt,
        "prompt_tokens": len(output.prompt_token_ids),
        "text": first.text,
        "token_ids": list(first.token_ids),
        "finish_reason": first.finish_reason,
    }
