"""Open an engine and stream an answer, with what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.core.cli.report import peak_memory, seconds, step_line, table
from bestiary.core.cli.session import Session
from bestiary.core.errors import EngineError, MissingInputError, UsageError
from bestiary.core.home import gib
from bestiary.core.progress import Progress, bearing
from bestiary.core.source import recognise

if TYPE_CHECKING:
    import typer

    from bestiary import LLM, SamplingParams

Prompt = str | list[dict[str, str]]


@dataclass
class Answer:
    """An answer as it arrives; times in seconds from the submission."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    first_token: float | None = None
    total: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first, which waits for the prompt."""
        if self.first_token is None or len(self.token_ids) < 2 or self.total <= self.first_token:
            return None
        return (len(self.token_ids) - 1) / (self.total - self.first_token)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "time_to_first_token_s": self.first_token,
            "total_s": self.total,
            "tokens_per_second": self.tokens_per_second,
            "peak_memory_bytes": peak_memory(),
        }

    def show_cost(self) -> None:
        """The line of the step ``generate`` and a small table, on stderr."""
        stderr = bearing(sys.stderr)
        step_line("generate", self.total, f"{len(self.token_ids)} tokens", stderr)
        rate = self.tokens_per_second
        row = (
            str(len(self.token_ids)), "-" if rate is None else f"{rate:.1f}",
            seconds(self.first_token), gib(peak_memory()),
        )  # fmt: skip
        table(("tokens", "tokens/s", "time to first token", "peak memory"), [row], stream=stderr)


def require_engine(engine: str, session: Session) -> Path:
    """The engine's directory. Raises MissingInputError where there is nothing, UsageError for another kind of model."""
    source = recognise(engine, session.host)
    if source.kind == "hub":
        hint = "'bestiary run' takes a hub id; 'bestiary cache ls' shows the engines that it made"
        raise MissingInputError("E-MODEL-MISSING", engine, "no such directory", expected="an engine", hint=hint)
    if source.kind != "engine" or source.path is None:
        found = "a checkpoint" if source.kind == "checkpoint" else "a model that is not converted"
        hint = "'bestiary run' does all steps at once; 'bestiary build' makes an engine of a checkpoint"
        raise UsageError("E-CLI-ENGINE", source.name, "not an engine", found=found, expected="an engine", hint=hint)
    return source.path


@contextmanager
def open_llm(
    engine: str | Path, session: Session, progress: Progress, *, tokenizer: str | Path | None = None, **options: Any
) -> Iterator[LLM]:
    """The engine, loaded with the session's plugins; closed at the end. Options that are None are left out.

    Without a tokenizer, named or the engine's, it works on token ids.
    """
    from bestiary import LLM
    from bestiary.core.text.tokenizer import has_tokenizer

    said = {name: value for name, value in options.items() if value is not None}
    llm = LLM(
        engine,
        tokenizer=tokenizer or ("auto" if has_tokenizer(Path(engine)) else None),
        plugins=session.plugins,
        prefer=session.preferences,
        strict_plugins=session.strict,
        lock=session.lock,
        progress=progress,
        **said,
    )
    try:
        yield llm
    finally:
        llm.close()


@contextmanager
def open_model(context: typer.Context, model: str, progress: Progress, **options: Any) -> Iterator[LLM]:
    """Any model, converted and built into the cache where that is needed, loaded with the plugins that the command line names;
    closed at the end.

    Args:
        context: the command's.
        model: HF directory, GGUF file, hub id, checkpoint or engine.
        options: of ``LLM``; those that are None are left out.
    """
    from bestiary.core.cli.session import session_of

    with open_llm(model, session_of(context), progress, **{"tokenizer": "auto", **options}) as llm:
        yield llm


@contextmanager
def open_hf(context: typer.Context, model: str, progress: Progress) -> Iterator[Path]:
    """Any model as a Hugging Face directory, for transformers: itself where it is one; else exported, bit for bit, and removed at
    the end.

    Args:
        context: the command's.
        model: HF directory, GGUF file, hub id, checkpoint or engine.
    """
    from bestiary.core.cli.session import session_of
    from bestiary.core.hf_directory import hf_directory

    with hf_directory(model, host=session_of(context).host, progress=progress) as directory:
        yield directory


def has_chat_template(*directories: Path) -> bool:
    """Whether the model of these directories, engine and tokenizer, was made for conversations."""
    from bestiary.core.text.chat import ChatTemplate

    return ChatTemplate.find(directories, {}) is not None


def conversation(text: str, system: str | None) -> list[dict[str, str]]:
    """One user message, after a system message where there is one."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": text}]


def stream(llm: LLM, prompt: Prompt, params: SamplingParams, *, silent: bool = False) -> Answer:
    """Write the answer to stdout as it comes.

    Raises:
        EngineError: the request ended with an error.
    """
    answer, began = Answer(), time.monotonic()
    for piece in llm.stream(prompt, params):
        answer.total = time.monotonic() - began
        if piece.token_ids and answer.first_token is None:
            answer.first_token = answer.total
        answer.text += piece.text
        answer.token_ids += piece.token_ids
        answer.finish_reason = piece.finish_reason or answer.finish_reason
        if piece.finish_reason == "error":
            raise EngineError("E-ENGINE-REQUEST", "request", str(piece.stop_reason or "ended with an error"))
        if not silent:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    if not silent:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return answer
