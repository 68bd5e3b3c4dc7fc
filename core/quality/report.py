"""What ``bestiary quality`` found."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from bestiary.core.reports.schema import JsonReport, ReportPart


class Share(ReportPart):
    """A share of the tokens with its 95 % interval (Wilson)."""

    value: float = Field(description="0 … 1")
    low: float = Field(description="lower end of the interval, 0 … 1")
    high: float = Field(description="upper end of the interval, 0 … 1")


class Mean(ReportPart):
    """A mean over the tokens with its standard error."""

    value: float = Field(description="the mean, in nats")
    error: float = Field(description="its standard error, in nats; null for a single token")


class Divergence(ReportPart):
    """KL(reference ‖ model) of the predicted distributions, in nats a token."""

    mean: Mean = Field(description="over all predicted tokens")
    median: float = Field(description="nats")
    p99: float = Field(description="99th percentile, nats")
    maximum: float = Field(description="nats")


class WorstToken(ReportPart):
    """One of the tokens whose distributions are farthest apart."""

    window: int = Field(description="number of the window, from 0")
    place: int = Field(description="place of the token in its window, from 0")
    divergence: float = Field(description="KL(reference ‖ model), nats")
    context: str = Field(description="the text before it, its end")
    token: str = Field(description="the token of the text")
    model_probability: float = Field(description="that the model gives to it")
    reference_probability: float = Field(description="that the reference gives to it")
    model_choice: str = Field(description="the model's likeliest token")
    reference_choice: str = Field(description="the reference's likeliest token")


class Begin(ReportPart):
    """What stands before the text's tokens in each window."""

    ids: tuple[int, ...] = Field(description="the tokens; empty: a window begins with the text's own")
    text: str = Field(description="the same as text")
    source: str = Field(description="the file and its field that say so")

    def sentence(self) -> str:
        """For people."""
        numbers = ", ".join(map(str, self.ids))
        put = f"begins with {self.text!r} (token {numbers})" if self.ids else "begins with no token but the text's own"
        return f"Each window {put}, as {self.source} has it."


class ModelQuality(ReportPart):
    """A model's predictions over the text, beside the reference's."""

    model: str = Field(description="what was examined")
    perplexity: float = Field(description="exp of the mean negative log-probability of the text's tokens")
    log_perplexity_difference: Mean = Field(
        description="mean of the model's minus the reference's negative log-probability"
    )
    divergence: Divergence = Field(description="how far the distributions are apart")
    agreement: Share = Field(description="tokens at which both have the same likeliest token")
    worst: tuple[WorstToken, ...] = Field(description="the tokens with the largest divergence, the largest first")

    WORST: ClassVar[tuple[str, ...]] = (
        "KL",
        "token",
        "p model",
        "p reference",
        "model says",
        "reference says",
        "after",
    )

    def worst_lines(self) -> list[tuple[str, ...]]:
        """Rows under ``WORST``."""
        return [
            (
                f"{one.divergence:.3g}",
                repr(one.token),
                f"{one.model_probability:.3g}",
                f"{one.reference_probability:.3g}",
                repr(one.model_choice),
                repr(one.reference_choice),
                repr(one.context[-32:]),
            )
            for one in self.worst
        ]

    def cells(self) -> tuple[str, ...]:
        """The figures, as ``QualityReport.FIGURES`` names them."""
        difference, agreed, apart = self.log_perplexity_difference, self.agreement, self.divergence
        return (
            f"{self.perplexity:.4f}",
            f"{difference.value:+.5f} ± {_error(difference)}",
            f"{apart.mean.value:.3g} ± {_error(apart.mean)}",
            f"{apart.median:.3g} · {apart.p99:.3g} · {apart.maximum:.3g}",
            f"{agreed.value:.2%} ({agreed.low:.2%} … {agreed.high:.2%})",
        )


class QualityReport(JsonReport):
    """Models' predictions over a text, beside a reference's."""

    schema_name: ClassVar[str] = "quality"

    reference: str = Field(description="what the models were compared with")
    text: str = Field(description="name of the text's file")
    tokens: int = Field(description="tokens that all predicted")
    windows: int = Field(description="pieces that the text was cut into")
    window: int = Field(description="most tokens of a window")
    begin: Begin = Field(description="what each window begins with; without it the first token is not predicted")
    reference_perplexity: float = Field(description="exp of the reference's mean negative log-probability")
    models: tuple[ModelQuality, ...] = Field(description="in the order in which they were named")

    FIGURES: ClassVar[tuple[str, ...]] = (
        "perplexity",
        "log perplexity, difference",
        "KL divergence, mean",
        "KL divergence, median · p99 · max",
        "top-1 agreement",
    )
    SHORT: ClassVar[tuple[str, ...]] = (
        "perplexity",
        "its log, difference",
        "KL, mean",
        "KL, median · p99 · max",
        "top-1 agreement",
    )

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headings and rows: a figure a row for one model, a model a row, under shorter names, for several."""
        perplexity = f"{self.reference_perplexity:.4f}"
        if len(self.models) == 1:
            (one,) = self.models
            theirs = (perplexity, *[""] * (len(self.FIGURES) - 1))
            return (
                ("", f"model: {one.model}", f"reference: {self.reference}"),
                list(zip(self.FIGURES, one.cells(), theirs, strict=True)),
            )
        rows = [(one.model, *one.cells()) for one in self.models]
        return ("model", *self.SHORT), [*rows, (f"reference: {self.reference}", perplexity, "", "", "", "")]


def _error(mean: Mean) -> str:
    return "?" if math.isnan(mean.error) else f"{1.96 * mean.error:.2g}"
