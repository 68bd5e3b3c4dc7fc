"""A text, cut into windows, through both sides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from bestiary.core.errors import DataError
from bestiary.core.progress import Progress
from bestiary.core.quality.figures import Rows, mean, wilson
from bestiary.core.quality.report import Divergence, Mean, QualityReport, Share, WorstToken
from bestiary.core.sides.side import Side
from bestiary.core.text.tokenizer import Tokenizer

_CONTEXT = 48  # characters shown before a token


def examine(
    ours: Side,
    reference: Side,
    tokenizer: Tokenizer,
    text: str,
    *,
    name: str,
    window: int,
    max_tokens: int | None,
    worst: int,
    progress: Progress,
) -> tuple[QualityReport, Rows]:
    """Compare two sides' predictions of a text.

    Args:
        name: of the text, for the report.
        window: most tokens that are run together; each window begins anew, with the model's begin token if it has one.
        max_tokens: of the text's beginning; None: all.
        worst: how many tokens to show.

    Raises:
        DataError: the text has fewer than two tokens, or the sides have different vocabularies.
    """
    begin, tokens = _tokens(tokenizer, text, max_tokens, name)
    cut = list(windows(tokens, begin, window))
    rows = Rows()
    progress.start("quality", len(tokens), "tokens")
    for number, piece in enumerate(cut):
        q, p = ours.logits(piece), reference.logits(piece)
        if q.shape != p.shape:
            raise DataError(
                "E-QUALITY-VOCABULARY",
                f"{ours.label} and {reference.label}",
                "predict different vocabularies, so their distributions can't be compared",
                found=f"{q.shape[-1]} and {p.shape[-1]} tokens",
            )
        rows.add(number, piece, q[:-1], p[:-1])
        progress.advance(len(piece) - len(begin))
    progress.finish(f"{len(rows.column('ours'))} tokens in {len(cut)} windows")
    report = _report(rows, cut, tokenizer, worst, ours=ours.label, reference=reference.label, text=name, window=window)
    return report, rows


def windows(tokens: Sequence[int], begin: Sequence[int], size: int) -> Iterator[list[int]]:
    """Pieces of at most ``size`` tokens, each after ``begin``; a last one that predicts nothing is left out.

    >>> list(windows([1, 2, 3, 4, 5], [0], 3))
    [[0, 1, 2], [0, 3, 4], [0, 5]]
    >>> list(windows([1, 2, 3, 4, 5], [], 2))
    [[1, 2], [3, 4]]
    """
    step = size - len(begin)
    for start in range(0, len(tokens), step):
        piece = [*begin, *tokens[start : start + step]]
        if len(piece) > 1:
            yield piece


def _tokens(tokenizer: Tokenizer, text: str, limit: int | None, name: str) -> tuple[list[int], list[int]]:
    begin = tokenizer.encode("", add_special_tokens=True)[:1]
    tokens = tokenizer.encode(text, add_special_tokens=False)[:limit]
    if len(begin) + len(tokens) < 2:
        raise DataError(
            "E-QUALITY-TEXT", name, "is too short: nothing in it can be predicted", found=f"{len(tokens)} tokens"
        )
    return begin, tokens


def _report(
    rows: Rows,
    cut: Sequence[list[int]],
    tokenizer: Tokenizer,
    worst: int,
    *,
    ours: str,
    reference: str,
    text: str,
    window: int,
) -> QualityReport:
    own, other, apart = rows.column("ours"), rows.column("reference"), rows.column("divergence")
    agreed = int((rows.column("our_choice") == rows.column("reference_choice")).sum())
    low, high = wilson(agreed, len(own))
    return QualityReport(
        model=ours,
        reference=reference,
        text=text,
        tokens=len(own),
        windows=len(cut),
        window=window,
        model_perplexity=_exp(-float(own.mean())),
        reference_perplexity=_exp(-float(other.mean())),
        log_perplexity_difference=_mean(other - own),
        divergence=Divergence(
            mean=_mean(apart),
            median=float(apart.median()),
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
