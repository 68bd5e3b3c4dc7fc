"""``bestiary eval``: its options, and the order of its work."""

from __future__ import annotations

import json as json_module
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary import MissingInputError, OutputError, UsageError, __version__
from bestiary.tools import plotly, print_json, progress

from . import tasks as task_names
from .files import read_questions

if TYPE_CHECKING:
    from .models import Opening
    from .report import EvalReport
    from .run import Run, Settings

_VERSIONS = ("bestiary-eval", "lm-eval", "torch", "transformers")
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")


def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="ENGINE", help="An engine, or any model that becomes one in the cache.")
    ],
    *,
    tasks: Annotated[
        list[str],
        typer.Option(
            metavar="NAME|FILE,…",
            help="lm-eval's tasks, groups and patterns by name; task files (.yaml); questions (.csv, .jsonl); repeatable.",
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="hf|MODEL",
            help="Ask another model the same, and compare item by item: hf is transformers on this model, hf:DIR on another.",
        ),
    ] = None,
    include_path: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Directory with more task files (.yaml); repeatable.")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(metavar="N", help="Only the first N items of each task; below 1, that part of them.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(metavar="N", help="Examples before each question, where the task allows it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of examples and sampled answers; else lm-eval's own.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Most requests at a time; else what the engine was built for.")
    ] = None,
    max_seq_len: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most tokens of a prompt and its answer; longer prompts lose their beginning."),
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Write prompts as conversations, by the model's template.")
    ] = False,
    system_instruction: Annotated[str | None, typer.Option(metavar="TEXT", help="Stands before each prompt.")] = None,
    fewshot_as_multiturn: Annotated[
        bool, typer.Option("--fewshot-as-multiturn", help="Examples as turns of the conversation.")
    ] = False,
    gen_kwargs: Annotated[
        str | None, typer.Option(metavar="K=V,…", help="How answers are generated, above what tasks say.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="RULES", help="Quantize ENGINE's weights, such as 'int4:group=64, lm_head=int8'; not --against's."
        ),
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="Dtype of ENGINE's KV cache: auto, float32, bfloat16, float16, int8, fp8, int4.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="BYTES|GiB", help="Most memory for this process, such as 4GiB.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory with the tokenizer.json to use instead of the model's."),
    ] = None,
    confirm_run_unsafe_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Run tasks that execute code which the model wrote.")
    ] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE|-", help="Write the scores as JSON; - prints them.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    log_samples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write each item with prompts and answers, a JSON object a line."),
    ] = None,
) -> None:
    """Score a model through lm-eval's harness, alone or paired with another on the same items.

    Questions in local files need no network. MMLU's form: CSV of question, A, B, C, D, answer, or JSONL with question, choices and
    answer. Other choices: JSONL with context, choices and gold.
    """
    names = task_names.split(tasks)
    targets = [target for target in (None if json in (None, "-") else Path(json or ""), html, log_samples) if target]
    _check(names, include_path or (), limit, num_fewshot, targets)
    if html is not None:
        plotly()
    _quiet(offline=Path(model).exists() and all(map(task_names.is_file, names)))

    from .models import Opening
    from .run import Settings

    settings = Settings(
        limit=limit,
        num_fewshot=num_fewshot,
        seed=seed,
        apply_chat_template=apply_chat_template,
        system_instruction=system_instruction,
        fewshot_as_multiturn=fewshot_as_multiturn,
        gen_kwargs=_pairs(gen_kwargs),
        unsafe_code=confirm_run_unsafe_code,
    )
    with progress(silent=json == "-") as steps:
        how = Opening(
            context=ctx,
            progress=steps,
            device=None if device == "auto" else device,
            quantization=quantize,
            kv_dtype=None if kv_dtype == "auto" else kv_dtype,
            batch_size=batch_size,
            max_seq_len=max_seq_len,
            memory_limit=memory_limit,
            tokenizer=tokenizer,
            seed=seed,
        )
        report, runs = _measured(model, against, names, include_path or (), settings, how)
    _hand_out(report, runs, json=json, html=html, log_samples=log_samples)


def _measured(
    model: str, against: str | None, names: Sequence[str], include: Sequence[Path], settings: Settings, how: Opening
) -> tuple[EvalReport, Mapping[str, Run]]:
    from lm_eval.tasks import TaskManager

    from . import models
    from .pairing import task_scores
    from .report import EvalReport
    from .run import run

    # The index of lm-eval's own 15,000 names takes seconds to read.
    own = not all(map(task_names.is_whole, names))
    groups = [Path(name).parent for name in names if task_names.is_yaml(name) and task_names.group_of(name)]
    manager = TaskManager(include_path=[str(path) for path in (*include, *groups)], include_defaults=own)
    asked = task_names.find(names, manager)
    with models.engine(model, how) as lm:
        mine, room, truncated = run(lm, asked, manager, settings), lm.max_length, lm.truncated
    name, other_name, other = models.name_of(model), None, None
    if against is not None:
        other_name = models.against_name(against, name)
        with models.other(against, model, how, room) as second:
            other = run(second, asked, manager, settings)
    report = EvalReport(
        model=name,
        against=other_name,
        scores=task_scores(mine, other),
        max_seq_len=room + 2,
        truncated=truncated,
        limit=settings.limit,
        seed=settings.seed,
        chat_template=settings.apply_chat_template,
        seconds=mine.seconds,
        against_seconds=None if other is None else other.seconds,
        versions={"bestiary": __version__, **{one: metadata.version(one) for one in _VERSIONS}},
    )
    return report, {name: mine, **({f"{other_name}": other} if other is not None else {})}


def _hand_out(
    report: EvalReport, runs: Mapping[str, Run], *, json: str | None, html: Path | None, log_samples: Path | None
) -> None:
    from .page import page
    from .show import cut, show

    if json == "-":
        print_json(report.as_dict())
    else:
        show(report)
        if json is not None:
            Path(json).write_text(json_module.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")  # fmt: skip
    if lost := cut(report):
        print(f"warning: {lost}", file=sys.stderr)
    if html is not None:
        page(report).write(html)
    if log_samples is not None:
        with log_samples.open("w", encoding="utf-8") as file:
            for name, one in runs.items():
                for task, items in one.logged.items():
                    for item in items:
                        line = {"model": name, "task": task, **item}
                        file.write(json_module.dumps(line, ensure_ascii=False, default=str) + "\n")


def _check(
    names: Sequence[str],
    include: Sequence[Path],
    limit: float | None,
    num_fewshot: int | None,
    targets: Sequence[Path],
) -> None:
    """What can be seen before anything is loaded."""
    for name in names:
        if task_names.is_file(name):
            _check_shots(name, len(read_questions(Path(name))), num_fewshot or 0)
        elif task_names.is_yaml(name) and not Path(name).is_file():
            raise MissingInputError("E-EVAL-TASKS", Path(name).name, "no such task file", hint="check the path")
    for folder in include:
        if not folder.is_dir():
            raise MissingInputError(
                "E-EVAL-TASKS", f"--include-path {folder.name}", "no such directory", hint="check the path"
            )
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and limit == int(limit))):
        expected, hint = "a whole number, or a part below 1", "--limit 100 asks a hundred items, --limit 0.1 a tenth"
        problem = "is no number of items"
        raise UsageError("E-EVAL-LIMIT", "--limit", problem, found=str(limit), expected=expected, hint=hint)
    if num_fewshot is not None and num_fewshot < 0:
        hint = "leave it out for the task's own number"
        found = str(num_fewshot)
        raise UsageError("E-EVAL-FEWSHOT", "--num-fewshot", "is negative", found=found, expected="0 or more", hint=hint)
    for target in targets:
        if target.is_dir() or not target.absolute().parent.is_dir():
            hint = "name a file in a directory that is there"
            raise OutputError("E-EVAL-OUT", target.name or str(target), "can't be written", hint=hint)


def _check_shots(name: str, questions: int, shots: int) -> None:
    """Examples are drawn from a file's other questions: lm-eval raises where there are fewer."""
    if shots and shots >= questions:
        raise UsageError(
            "E-EVAL-FEWSHOT",
            "--num-fewshot",
            f"asks for more examples than {Path(name).name} has beside a question",
            found=str(shots),
            expected=f"at most {questions - 1}",
            hint="leave it out, or give a file with more questions",
        )


def _quiet(*, offline: bool) -> None:
    """Before lm-eval is imported: no network where none is needed, and none of its warnings unless everything is logged."""
    if offline:
        for name in _OFFLINE:
            os.environ.setdefault(name, "1")
    if not sys.stderr.isatty():
        for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    if not logging.getLogger("bestiary").isEnabledFor(logging.INFO):
        logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _pairs(text: str | None) -> dict[str, Any] | None:
    """``--gen-kwargs`` as lm-eval reads it."""
    if text is None:
        return None
    if not all(part.partition("=")[0].strip() and "=" in part for part in text.split(",")):
        hint = "such as --gen-kwargs temperature=0.7,do_sample=True"
        raise UsageError("E-EVAL-GENERATION", "--gen-kwargs", "not pairs", found=repr(text), hint=hint)
    from lm_eval.utils import simple_parse_args_string

    found: dict[str, Any] = simple_parse_args_string(text)
    return found
