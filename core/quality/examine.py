"""A text, cut into windows, through models and their reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from bestiary.core.errors import DataError
from bestiary.core.progress import Progress
from bestiary.core.quality.figures import Rows, mean, wilson
from bestiary.core.quality.report import Begin, Divergence, Mean, ModelQuality, QualityReport, Share, WorstToken
from bestiary.core.sides.side import Side
from bestiary.core.text.tokenizer import Tokenizer

_CONTEXT = 48  # characters shown before a token


def examine(
    models: Sequence[Side],
    reference: Side,
    tokenizer: Tokenizer,
    text: str,
    *,
    name: str,
    window: int,
    max_tokens: int | None,
    worst: int,
    progress: Progress,
) -> tuple[QualityReport, list[Rows]]:
    """Compare models' predictions of a text with a reference's, which is run once for all of them.

    Args:
        name: of the text, for the report.
        window: most tokens that are run together; each window begins anew, with what the tokenizer puts before a text.
        max_tokens: of the text's beginning; None: all.
        worst: how many tokens to show of each model.

    Raises:
        DataError: the text has too few tokens, or a model and the reference have different vocabularies.
    """
    for side in models:
        _check_vocabularies(side, reference)
    begin = tokenizer.beginning()
    tokens = tokenizer.encode(text, add_special_tokens=False)[:max_tokens]
    cut = list(windows(tokens, begin.ids, window))
    if not cut:
        raise DataError(
            "E-QUALITY-TEXT", name, "is too short: nothing in it can be predicted", found=f"{len(tokens)} tokens"
        )
    found = [Rows() for _ in models]
    first = max(1, len(begin.ids))
    progress.start("quality", len(tokens), "tokens")
    for number, piece in enumerate(cut):
        p = reference.logits(piece)
        for rows, side in zip(found, models, strict=True):
            q = side.logits(piece)
            rows.add(number, piece, q[first - 1 : -1], p[first - 1 : -1], first)
        progress.advance(len(piece) - len(begin.ids))
    predicted = found[0].column("reference")
    progress.finish(f"{len(predicted)} tokens in {len(cut)} windows")
    report = QualityReport(
        reference=reference.label,
        text=name,
        tokens=len(predicted),
        windows=len(cut),
        window=window,
        begin=Begin(
            ids=begin.ids,
            text=tokenizer.decode(begin.ids, skip_special_tokens=False),
            source=begin.source,
        ),
        reference_perplexity=_exp(-float(predicted.mean())),
        models=tuple(
            _quality(side.label, rows, cut, tokenizer, worst) for side, rows in zip(models, found, strict=True)
        ),
    )
    return report, found


def windows(tokens: Sequence[int], begin: Sequence[int], size: int) -> Iterator[list[int]]:
    """Pieces of at most ``size`` tokens, each after ``begin``; a last one that predicts nothing is left out.

    >>> list(windows([1, 2, 3, 4, 5], [0], 3))
    [[0, 1, 2], [0, 3, 4], [0, 5]]
    >>> list(windows([1, 2, 3, 4, 5], [], 2))
    [[1, 2], [3, 4]]
    """
    step = max(1, size - len(begin))
    for start in range(0, len(tokens), step):
        piece = [*begin, *tokens[start : start + step]]
        if len(piece) > 1:
            yield piece


def _check_vocabularies(side: Side, reference: Side) -> None:
    """Before any of them runs: the smaller one has no row for the other's tokens."""
    if side.vocab_size != reference.vocab_size:
        raise DataError(
            "E-QUALITY-VOCABULARY",
            f"{side.label} and {reference.label}",
            "predict different vocabularies, so their distributions can't be compared",
            found=f"{side.vocab_size} and {reference.vocab_size} tokens",
        )


def _quality(label: str, rows: Rows, cut: Sequence[list[int]], tokenizer: Tokenizer, worst: int) -> ModelQuality:
    own, other, apart = rows.column("ours"), rows.column("reference"), rows.column("divergence")
    agreed = int((rows.column("our_choice") == rows.column("reference_choice")).sum())
    low, high = wilson(agreed, len(own))
    return ModelQuality(
        model=label,
        perplexity=_exp(-float(own.mean())),
        log_perplexity_difference=_mean(other - own),
        divergence=Divergence(
            mean=_mean(apart),
            median=float(apart.quantile(0.5)),
            p99=float(apart.quantile(0.99)),
            maximum=float(apart.max()),
        ),
        agreement=Share(value=agreed / len(own), low=low, high=high),
        worst=tuple(_worst(rows, cut, tokenizer, int(index)) for index in apart.topk(min(worst, len(apart))).indices),
    )


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _mean(values: torch.Tensor) -> Mean:
    value, error = mean(values)
    return Mean(value=value, error=error)


def _worst(rows: Rows, cut: Sequence[list[int]], tokenizer: Tokenizer, index: int) -> WorstToken:
    def at(name: str) -> float:
        return float(rows.column(name)[index])

    number, place = int(at("window")), int(at("place"))
    piece = cut[number]
    return WorstToken(
        window=number,
        place=place,
        divergence=at("divergence"),
        context=tokenizer.decode(piece[:place])[-_CONTEXT:],
        token=tokenizer.decode([piece[place]]),
        model_probability=math.exp(at("ours")),
        reference_probability=math.exp(at("reference")),
        model_choice=tokenizer.decode([int(at("our_choice"))]),
        reference_choice=tokenizer.decode([int(at("reference_choice"))]),
    )
