"""From what the command line says of requests to a workload that all targets understand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bestiary.core.bench.asks import Workload
from bestiary.core.bench.lengths import Lengths
from bestiary.core.bench.sharegpt import ShareGPT
from bestiary.core.bench.synthetic import Synthetic
from bestiary.core.bench.target import Target
from bestiary.core.bench.vocabulary import Ids, Vocabulary, Words
from bestiary.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which requests are sent.

    Args:
        dataset: a file of conversations; None: synthetic prompts.
        output: of answers; None: what the dataset says.
        shared_prefix, prefix_groups: see :class:`Synthetic`.
        ignore_eos: None: of synthetic requests yes, of a dataset's no.
        prompt_ids: URLs take token ids.
    """

    dataset: Path | None = None
    input: Lengths
    output: Lengths | None = None
    shared_prefix: int = 0
    prefix_groups: int = 1
    ignore_eos: bool | None = None
    prompt_ids: bool = False


def workload(data: Data, targets: Sequence[Target], seed: int) -> Workload:
    """Requests that are the same for all targets.

    Raises:
        UsageError: token ids, and nobody knows how many there are; text, and an engine without a tokenizer.
        MissingInputError, DataError: the dataset.
    """
    if data.dataset is not None:
        for target in targets:
            if target.about.kind == "engine" and target.tokenizer is None:
                name = target.about.name
                raise UsageError("E-BENCH-PROMPTS", "--dataset", f"{name} has no tokenizer, and conversations are text")
        tokenizer = next((target.tokenizer for target in targets if target.tokenizer is not None), None)
        longest = min((target.longest for target in targets if target.longest is not None), default=None)
        return ShareGPT(
            data.dataset, tokenizer, seed=seed, longest=longest, output=data.output, ignore_eos=bool(data.ignore_eos)
        )  # fmt: skip
    return Synthetic(
        vocabulary(targets, data.prompt_ids),
        data.input,
        data.output or Lengths.parse("128", "--output"),
        seed=seed,
        shared_prefix=data.shared_prefix,
        groups=data.prefix_groups,
        ignore_eos=data.ignore_eos is not False,
    )


def vocabulary(targets: Sequence[Target], prompt_ids: bool) -> Vocabulary:
    """Token ids where every target takes them, else words."""
    tokenizer = next((target.tokenizer for target in targets if target.tokenizer is not None), None)
    sizes = [target.vocab_size for target in targets if target.vocab_size is not None]
    engines = [target for target in targets if target.about.kind == "engine"]
    if len(engines) == len(targets) or prompt_ids or (engines and tokenizer is None):
        known = min(sizes, default=None if tokenizer is None else tokenizer.vocab_size)
        if known is None:
            raise UsageError("E-BENCH-PROMPTS", "--prompt-ids", "nobody knows how many token ids there are")
        return Ids(known)
    return Words(tokenizer)
