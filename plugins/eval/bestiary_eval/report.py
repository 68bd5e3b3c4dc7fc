"""What ``bestiary eval --json`` prints."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from bestiary.tools import JsonReport


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Flip(_Part):
    """An item that one model has right and the other has not."""

    document: int = Field(description="Number of the item in its task, from 0.")
    text: str = Field(description="The question, or the end of the prompt, cut to 300 characters.")
    target: str = Field(description="The right answer, cut to 100 characters.")
    answer: str = Field(description="What the model said, cut to 100 characters.")
    against_answer: str = Field(description="What the other model said, cut to 100 characters.")
    gained: bool = Field(description="Whether the model has it right, and not the other.")


class Paired(_Part):
    """The other model's score, and the two item by item."""

    value: float = Field(description="The other model's score, in the metric's unit (1 is all right for accuracies).")
    stderr: float | None = Field(description="Its standard error, as lm-eval gives it; null where there is none.")
    low: float | None = Field(description="Lower end of its 95 % interval.")
    high: float | None = Field(description="Upper end of its 95 % interval.")
    difference: float = Field(description="The model's score minus the other's.")
    difference_low: float | None = Field(description="Lower end of the difference's 95 % interval over paired items.")
    difference_high: float | None = Field(description="Upper end of the difference's 95 % interval over paired items.")
    p_value: float | None = Field(description="Exact two-sided p of McNemar's test; null where items are not right or wrong.")  # fmt: skip
    gained: int = Field(description="Items that only the model has right.")
    lost: int = Field(description="Items that only the other has right.")
    changed: int | None = Field(
        description="Items whose answers differ, right or wrong; null where there are none, as of the likelihood of whole texts."
    )
    flips: list[Flip] = Field(description="The items that were gained or lost.")


class TaskScore(_Part):
    """One metric of one task or group of tasks."""

    task: str = Field(description="lm-eval's name of the task or group, or the file's name.")
    version: str = Field(description="The task's version.")
    metric: str = Field(description="lm-eval's name of the metric.")
    filter: str = Field(description="lm-eval's name of what was done to answers first.")
    shots: int | None = Field(description="Examples before each question; null where the tasks of a group differ.")
    count: int = Field(description="Items.")
    higher_is_better: bool = Field(description="Whether more is better.")
    value: float = Field(description="The score, in the metric's unit (1 is all right for accuracies).")
    stderr: float | None = Field(description="Its standard error, as lm-eval gives it; null where there is none.")
    low: float | None = Field(description="Lower end of its 95 % interval.")
    high: float | None = Field(description="Upper end of its 95 % interval.")
    interval: Literal["wilson", "normal"] | None = Field(
        description="What the interval is: Wilson's where items are right or wrong, else from the standard error."
    )
    against: Paired | None = Field(description="The other model; null without --against.")


class EvalReport(JsonReport):
    """Scores of a model on tasks, alone or paired with another model on the same items."""

    schema_name: ClassVar[str] = "eval"

    model: str = Field(description="The model as it was named, without its directory.")
    against: str | None = Field(description="The other model, or transformers; null without --against.")
    scores: list[TaskScore] = Field(description="Every metric of every task.")
    max_seq_len: int = Field(description="Most tokens of a prompt and its answer; longer prompts lose their beginning.")
    truncated: int = Field(description="Requests that were cut on the left, of the model.")
    limit: float | None = Field(description="Items of each task that were asked, below 1 a part of them; null for all.")
    seed: int | None = Field(description="The seed of all draws; null for lm-eval's own seeds.")
    chat_template: bool = Field(description="Whether prompts were written as conversations.")
    seconds: float = Field(description="Wall time of the harness with the model, in seconds.")
    against_seconds: float | None = Field(description="The same with the other model, in seconds.")
    versions: dict[str, str] = Field(description="Distribution to version: bestiary, bestiary-eval, lm-eval, torch, transformers.")  # fmt: skip
