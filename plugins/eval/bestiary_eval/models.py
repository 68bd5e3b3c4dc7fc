"""The two sides of an evaluation, opened one after the other: an engine, or transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.tools import Progress, open_hf, open_model

if TYPE_CHECKING:
    import typer
    from lm_eval.api.model import LM

    from .lm import EngineLM

#: ``--against`` with this takes transformers; after a colon, on that model.
HF = "hf"


@dataclass(frozen=True)
class Opening:
    """How models are opened: where, how much at once, how long, with which seed of draws; and how the first one is stored."""

    context: typer.Context
    progress: Progress
    device: str | None
    batch_size: int | None
    max_seq_len: int | None
    memory_limit: str | None
    tokenizer: Path | None
    seed: int | None
    quantization: str | None = None
    kv_dtype: str | None = None


@contextmanager
def engine(model: str, how: Opening) -> Iterator[EngineLM]:
    """An engine behind lm-eval's interface, closed at the end."""
    from .lm import EngineLM

    options: dict[str, Any] = {
        "device": how.device,
        "max_batch_size": how.batch_size,
        "max_seq_len": how.max_seq_len,
        "memory_limit": how.memory_limit,
        "tokenizer": how.tokenizer or "auto",
        "seed": how.seed or 0,
        "quantization": how.quantization,
        "kv_dtype": how.kv_dtype,
    }
    with open_model(how.context, model, how.progress, **options) as llm:
        yield EngineLM(llm, name_of(model), how.progress)


@contextmanager
def other(against: str, model: str, how: Opening, max_length: int) -> Iterator[LM]:
    """What ``--against`` names."""
    kind, _, named = against.partition(":")
    if kind == HF:
        with reference(named or model, how, max_length) as lm:
            yield lm
    else:
        with engine(against, replace(how, quantization=None, kv_dtype=None)) as lm:
            yield lm


def against_name(against: str, model: str) -> str:
    """What the other side is called in reports, apart from the first."""
    kind, _, named = against.partition(":")
    if kind == HF:
        return f"transformers on {name_of(named)}" if named else "transformers"
    name = name_of(against)
    return name if name != model else f"{name} (the other)"


@contextmanager
def reference(model: str, how: Opening, max_length: int) -> Iterator[LM]:
    """lm-eval's own class for transformers on the model's Hugging Face form, with the engine's length.

    Raises:
        DataError: transformers can't load it.
    """
    from .reference import load

    with open_hf(how.context, model, how.progress) as directory:
        yield load(
            directory,
            name_of(model),
            how.progress,
            tokenizer=how.tokenizer,
            batch_size=how.batch_size,
            max_length=max_length,
            device=how.device,
        )


def name_of(model: str) -> str:
    """A model's name for people: the last part of its path or hub id."""
    return Path(model).name or model
