"""The whole comparison: open both sides, compare, and where they part, find out why."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bestiary.core import device as devices
from bestiary.core.checkpoint.parameters import parse_config
from bestiary.core.diff.bisect import Outcome, bisect, suspects, variants
from bestiary.core.diff.compare import Comparison, Prompt, Standard, standards
from bestiary.core.diff.describe import describe
from bestiary.core.diff.failures import Failure, compared
from bestiary.core.diff.few_bits import Search, behind_few_bits, stored_in, with_plain
from bestiary.core.diff.lengths import longest_of, within
from bestiary.core.diff.open import Request, Setting, open_sides
from bestiary.core.diff.patterns import Finding
from bestiary.core.diff.quantization import Loss, measured, parts_of
from bestiary.core.diff.verdict import Verdict, after_failures, judge, of_few_bits, origin_of
from bestiary.core.errors import PluginError, UsageError
from bestiary.core.plugins import PluginHost
from bestiary.core.program.call_error import CallError
from bestiary.core.progress import Progress, step
from bestiary.core.prompts import PromptInput, read_prompt
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.side import Side
from bestiary.core.sides.transformers_side import TransformersSide
from bestiary.core.text.tokenizer import Tokenizer, has_tokenizer

#: What is run where no prompt is named and the model has a tokenizer.
TEXT = (
    "The library at the harbour opens at nine. Every morning, before the first ferry leaves, Mara sorts 128 letters by "
    "street and house number; the one with a foreign stamp she keeps for last."
)


@dataclass(frozen=True)
class Texts:
    """What is run.

    Args:
        prompts: texts, or ``{"prompt_token_ids": ids}``.
        tokens: so many random ids in their place; None: the texts, or, where there are none, :data:`TEXT`.
        seed: of the random ids.

    Raises:
        UsageError: texts and random ids, or no ids.
    """

    prompts: Sequence[PromptInput] = ()
    tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts and self.tokens is not None:
            raise UsageError("E-DIFF-PROMPT", "--tokens", "random tokens and prompts exclude each other")
        if self.tokens is not None and self.tokens < 1:
            raise UsageError(
                "E-DIFF-PROMPT", "--tokens", "is not positive", found=str(self.tokens), expected="1 or more"
            )


@dataclass(frozen=True)
class Result:
    """What ``bestiary diff`` found.

    Args:
        ours, against: what was compared.
        coarsest: the dtype of either side with the fewest digits, by which tolerances are measured.
        made_by: the distribution whose kernel made the first tensor that is wrong.
        spoiled_by: the distributions of the kernels that change inputs.
        few_bits: what was done about weights and a KV cache of few bits.
        quantization: what quantized weights cost, where that is all that is wrong.
        failures: calls that raise; all else is of our side with what ran in their place.
        failed_by: the distributions of their kernels.
    """

    ours: str
    against: str
    device: str
    coarsest: torch.dtype
    prompts: Sequence[Prompt]
    comparison: Comparison
    verdict: Verdict
    outcomes: Sequence[Outcome] = field(default_factory=tuple)
    made_by: str | None = None
    spoiled_by: Sequence[str | None] = ()
    few_bits: str = ""
    quantization: Loss | None = None
    failures: Sequence[Failure] = ()
    failed_by: Sequence[str | None] = ()


def diff(request: Request, texts: Texts, *, host: PluginHost, progress: Progress) -> Result:
    """Compare MODEL with what it is held against.

    Raises:
        BestiaryError: of the kind that fits.
    """
    with tempfile.TemporaryDirectory(prefix="bestiary-diff-") as folder:
        setting = open_sides(request, host=host, folder=Path(folder), progress=progress)
        own = not texts.prompts and texts.tokens is None
        sequences = within(_sequences(setting, texts), setting.ours, cut=own)
        longest = max(len(tokens) for tokens in sequences)
        with step(progress, "load") as note:
            side = setting.ours.load(longest)
            note.text = side.label
        with devices.full_precision():
            against = setting.against(longest, side.engine.network.target.device)
        return _compared(setting, side, against, sequences, progress)


def _compared(
    setting: Setting, side: EngineSide, against: Side, sequences: Sequence[Sequence[int]], progress: Progress
) -> Result:
    steps = min(one.longest for one in (side, against) if isinstance(one, EngineSide))
    prompts, coarsest = [Prompt.of(tokens, steps) for tokens in sequences], _coarsest(side, against)
    with step(progress, "reference") as note, devices.full_precision():
        right = _standards(against, prompts, coarsest)
        note.text = f"{sum(len(prompt.tokens) for prompt in prompts)} tokens"
    with step(progress, "compare", len(prompts), "prompts") as note:
        ours, side, comparison, failures = compared(setting.ours, side, right, lambda: progress.advance(1))
        note.text = f"{len(comparison.rows)} tensors"
    if isinstance(against, TransformersSide) and comparison.rows:  # a call may have ended the device's work for good
        against.rest()
    search = Search(ours, side, comparison, right)
    if (side.few_bits or side.methods) and comparison.wrong:
        search = _past_few_bits(setting, search, against, progress)
    comparison, host = search.comparison, setting.ours.host
    outcomes, found = _bisected(search, against, progress)
    unexplained = comparison.first is not None and not any(outcome.gone for outcome in outcomes)
    strangers = setting.strangers(against) if unexplained else None
    verdict = judge(comparison, outcomes, found, search.ours, against, strangers, of_few_bits(search))
    return Result(
        ours=side.label,
        against=against.label,
        device=str(side.engine.network.target.device),
        coarsest=coarsest,
        prompts=prompts,
        comparison=comparison,
        verdict=after_failures(failures, verdict, setting.ours),
        outcomes=outcomes,
        made_by=origin_of(host, comparison.first.by) if comparison.first else None,
        spoiled_by=[origin_of(host, one.by) for one in comparison.spoilers],
        few_bits=search.note,
        quantization=search.quantization,
        failures=failures,
        failed_by=[origin_of(host, one.by) for one in failures],
    )


def _standards(against: Side, prompts: Sequence[Prompt], coarsest: torch.dtype) -> list[Standard]:
    try:
        return standards(against, prompts, coarsest)
    except CallError as error:
        hint = "it is the other side's: name that model as MODEL, --against reference"
        raise PluginError("E-KERNEL-FAILED", f"{against.label}: {error.subject}", error.problem, hint=hint) from error


def _past_few_bits(setting: Setting, search: Search, against: Side, progress: Progress) -> Search:
    """The search where what is stored in few bits does not hide mistakes, and what that costs where there is none."""
    search = with_plain(search, against, setting.plain_weights() if search.side.methods else None)
    with step(progress, "few bits", 3, "comparisons") as note:
        search = behind_few_bits(search, lambda: progress.advance(1))
        note.text = search.note or stored_in(search)
    plain, parts = search.plain, parts_of(search.side.methods)
    if search.lost is None or plain is None or "plain" not in plain.options:
        return search
    with step(progress, "layers", len(parts) + 1, "parts") as note:
        standard = search.standard or search.right[0]
        loss = measured(search.ours, search.side, plain.options, standard, lambda: progress.advance(1))
        note.text = f"logits off by {loss.error:.3g}"
    return replace(search, quantization=loss)


def _bisected(search: Search, against: Side, progress: Progress) -> tuple[Sequence[Outcome], list[Finding]]:
    """What one changed option does to the first tensor that is wrong, and what its error looks like."""
    row, standard = search.comparison.first, search.standard
    if row is None or standard is None or search.lost:
        return search.outcomes, []
    tries = variants(suspects(search.side, row, standard, search.ours.host, search.plain))
    with step(progress, "bisect", len(tries), "variants") as note:
        outcomes = bisect(search.ours, tries, row, standard, advance=lambda: progress.advance(1))
        found = describe(row, standard, search.side, against, search.ours)
        note.text = f"{len(tries)} variants"
    return outcomes, found


def _coarsest(*sides: Side) -> torch.dtype:
    dtypes = [torch.float32]
    for side in sides:
        if isinstance(side, EngineSide):
            geometry = side.engine.network.geometry
            # What few bits lose is no rounding: it is shown as an error.
            dtypes += [d for d in (geometry.dtype, geometry.kv_dtype) if isinstance(d, torch.dtype)]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _sequences(setting: Setting, texts: Texts) -> list[list[int]]:
    manifest, directory = setting.ours.manifest.checkpoint, setting.ours.directory
    vocabulary = parse_config(setting.ours.host.model(manifest.model), manifest.config).vocab_size
    named = list(texts.prompts)
    if texts.tokens is None and (named or has_tokenizer(directory)):
        read = named or [TEXT]
        tokenizer = Tokenizer.load(directory) if any(isinstance(one, str) for one in read) else None
        if not named and tokenizer is not None:
            return [tokenizer.encode(TEXT)]
        limit = longest_of(setting.ours)
        # No output follows, so a prompt may fill the sequence.
        return [read_prompt(one, tokenizer, vocab_size=vocabulary, max_seq_len=limit + 1).token_ids for one in read]
    count = 32 if texts.tokens is None else texts.tokens
    generator = torch.Generator().manual_seed(texts.seed)
    return [torch.randint(vocabulary, (count,), generator=generator).tolist()]
