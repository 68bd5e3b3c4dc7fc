"""One model on tasks: lm-eval's evaluation, and what came of it in a form that two runs can be compared in."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bestiary import BestiaryError, DataError

from .choices import Choices

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

_BOOTSTRAPS = 1000
# lm-eval's own seeds, of Python's draws and of all others.
_RANDOM_SEED, _OTHER_SEED = 0, 1234


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How tasks are asked; lm-eval's own options under their names. ``seed`` None leaves lm-eval's four seeds as they are."""

    limit: float | None = None
    num_fewshot: int | None = None
    seed: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    gen_kwargs: Mapping[str, Any] | None = None
    unsafe_code: bool = False


@dataclass(frozen=True)
class Item:
    """One question and what was made of it.

    Args:
        document: number within the task.
        digest: of the question as the task has it; equal items have equal ones.
        values: metric → score.
        answer: the choice that was taken, or the text that was written, by metric; none where nothing was chosen or written.
        logged: everything lm-eval knows of it.
    """

    document: int
    digest: str
    values: Mapping[str, Any]
    answer: Mapping[str, str]
    logged: Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """A task's figure, or a group's of tasks, which has no items of its own."""

    task: str
    metric: str
    filter: str
    value: float
    error: float | None
    higher_is_better: bool
    count: int
    shots: int | None
    version: str
    items: Sequence[Item]


@dataclass(frozen=True)
class Run:
    """All scores of a model, and the seconds that the harness took."""

    scores: Sequence[Score]
    seconds: float
    logged: Mapping[str, Sequence[Mapping[str, Any]]]


def run(lm: LM, tasks: Sequence[Any], manager: TaskManager, settings: Settings) -> Run:
    """Ask a model everything.

    Raises:
        BestiaryError: the engine's.
        DataError: lm-eval failed: data that can't be had, a task that is wrong, code that isn't to be run.
    """
    from lm_eval import evaluate

    began = time.monotonic()
    try:
        # lm-eval prints some of what it does; stdout belongs to the result.
        with redirect_stdout(sys.stderr):
            found = evaluate(
                lm=lm,
                task_dict=_loaded(tasks, manager, settings),
                limit=settings.limit,
                apply_chat_template=settings.apply_chat_template,
                system_instruction=settings.system_instruction,
                fewshot_as_multiturn=settings.fewshot_as_multiturn,
                confirm_run_unsafe_code=settings.unsafe_code,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=True,
            )
    except (BestiaryError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever tasks, datasets and the hub raise
        raise _failure(error) from error
    assert found is not None
    return Run(tuple(_scores(found)), time.monotonic() - began, found["samples"])


def _loaded(tasks: Sequence[Any], manager: TaskManager, settings: Settings) -> Any:
    """The tasks, asked as the settings say. As lm-eval's own command does it, which also looks around for git and devices."""
    import numpy
    import torch

    one = settings.seed
    random.seed(_RANDOM_SEED if one is None else one)
    numpy.random.seed(_OTHER_SEED if one is None else one)
    torch.manual_seed(_OTHER_SEED if one is None else one)
    loaded = manager.load(list(tasks))
    for task in loaded["tasks"].values():
        if settings.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(settings.gen_kwargs), update=True)
        said = task.get_config("num_fewshot")
        # A task that says 0 can't be asked with examples.
        if said != 0 and (said is None or settings.num_fewshot is not None):
            task.set_config(key="num_fewshot", value=settings.num_fewshot or 0)
        task.set_fewshot_seed(seed=_OTHER_SEED if one is None else one)
    return loaded


def _failure(error: Exception) -> DataError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    hint = "--debug shows the traceback"
    if "larger than population" in text:
        hint = "a task has fewer examples than --num-fewshot asks for: give a smaller number"
    elif "unsafe" in text:
        hint = "--confirm-run-unsafe-code runs code that the model wrote"
    elif any(word in f"{type(error).__name__} {text}" for word in ("Connection", "Offline", "offline", "reach", "Hub")):
        hint = "lm-eval fetches this task's data from the Hugging Face hub, once: it needs a network, or the data in the hub's cache"
    return DataError("E-EVAL-HARNESS", "lm-eval", f"failed: {type(error).__name__}: {text}", hint=hint)


def _scores(found: Mapping[str, Any]) -> list[Score]:
    scores = []
    groups = found.get("groups", {})
    for name, figures in {**found["results"], **groups}.items():
        for key, value in figures.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}_stderr,{filter_name}")
            items = [_item(one) for one in found["samples"].get(name, ()) if one["filter"] == filter_name]
            scores.append(
                Score(
                    task=name,
                    metric=metric,
                    filter=filter_name,
                    value=float(value),
                    error=float(error) if isinstance(error, int | float) else None,
                    higher_is_better=found.get("higher_is_better", {}).get(name, {}).get(metric) is not False,
                    count=_count(found, name, len(items)),
                    shots=_shots(found, name),
                    version=str(found.get("versions", {}).get(name, "")),
                    items=items,
                )
            )
    return scores


def _count(found: Mapping[str, Any], name: str, items: int) -> int:
    below = found.get("group_subtasks", {}).get(name, ())
    if items or not below:
        return items
    return sum(_count(found, one, len({s["doc_id"] for s in found["samples"].get(one, ())})) for one in below)


def _shots(found: Mapping[str, Any], name: str) -> int | None:
    shots = found.get("n-shot", {}).get(name)
    return shots if isinstance(shots, int) else None


def _item(logged: Mapping[str, Any]) -> Item:
    values = {name: logged[name] for name in logged.get("metrics", ()) if name in logged}
    answers = {name: said for name in values if (said := _answer(logged, name)) is not None}
    return Item(logged["doc_id"], logged["doc_hash"], values, answers, logged)


def _answer(logged: Mapping[str, Any], metric: str) -> str | None:
    """What the model said: the choice it took, or the text it wrote. Of a text's log-likelihood, whether it would say that;
    of a rolling one nothing."""
    if choices := Choices.of(logged):
        return choices.taken(metric)
    responses = list(logged["filtered_resps"])
    said = responses[0] if len(responses) == 1 else responses
    if isinstance(said, float):
        return None
    if isinstance(said, tuple) and len(said) == 2 and isinstance(said[1], bool):
        return "the same" if said[1] else "something else"
    return " ".join(str(said[0] if isinstance(said, list) and len(said) == 1 else said).split())
