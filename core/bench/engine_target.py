"""An engine in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bestiary.core.bench.asks import Ask
from bestiary.core.bench.records import Ending, Record
from bestiary.core.bench.target import About, EngineSide
from bestiary.core.errors import BestiaryError, RequestError
from bestiary.core.runtime.steps import StepRecorder
from bestiary.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from bestiary.core.engine.load import LoadedEngine
    from bestiary.core.llm import LLM
    from bestiary.core.outputs import RequestOutput


class EngineTarget:
    """Asks an ``LLM`` through ``generate_async`` and ``generate``, greedily.

    Answers to token ids are not turned into text, those to text are.

    Args:
        options: those that it was opened with.
    """

    forgets = True

    def __init__(self, name: str, llm: LLM, options: Mapping[str, Any]) -> None:
        from bestiary.core.llm import Inside

        inside = Inside.of(llm)
        self._llm, self._loop = llm, inside.loop
        self._before = 0
        self.tokenizer = llm.tokenizer
        self.longest: int | None = llm.max_seq_len
        self.vocab_size: int | None = inside.vocab_size
        self.about = About(name, "engine", *_place(inside.engine), self._facts(options))

    def begin(self) -> None:
        self._llm.reset_prefix_cache()
        self._before = self._loop.scheduler.num_preemptions
        self._loop.recorder = StepRecorder()

    def end(self) -> EngineSide:
        recorder, self._loop.recorder = self._loop.recorder, None
        assert recorder is not None
        steps = tuple(recorder.steps)
        preemptions = self._loop.scheduler.num_preemptions - self._before
        return EngineSide(steps, recorder.seen - len(steps), self._blocks(), preemptions)

    async def answer(self, ask: Ask, arrived: Callable[[int], None]) -> Ending:
        try:
            answer = self._llm.generate_async(_prompt(ask), _params(ask))
            async for piece in answer:
                if piece.token_ids:
                    arrived(len(piece.token_ids))
            return _ending(await answer)
        except BestiaryError as error:
            return Ending(error="refused" if isinstance(error, RequestError) else "engine", message=str(error))

    def batch(self, asks: Sequence[Ask]) -> list[Record]:
        outputs = self._llm.generate([_prompt(ask) for ask in asks], [_params(ask) for ask in asks], use_tqdm=False)
        return [_record(ask, output) for ask, output in zip(asks, outputs, strict=True)]

    async def close(self) -> None:
        pass

    def _blocks(self) -> int:
        return sum(pool.num_blocks for pool in self._loop.scheduler.tables.pools)

    def _facts(self, options: Mapping[str, Any]) -> dict[str, str | int | float | bool | None]:
        scheduler = self._loop.scheduler
        facts: dict[str, str | int | float | bool | None] = {
            "max_batch_size": scheduler.max_batch_size,
            "max_num_tokens": scheduler.max_num_tokens,
            "max_seq_len": self.longest,
            "kv_blocks": self._blocks(),
            "block_size": scheduler.tables.groups[0].block_size if scheduler.tables.groups else None,
            "vocab_size": self.vocab_size,
        }
        return {**facts, **{name: v if isinstance(v, str | int | float) else str(v) for name, v in options.items()}}


def _place(engine: LoadedEngine | None) -> tuple[str, str | None]:
    """The model's name, and the device if the engine runs in this process."""
    if engine is None:
        return "divided engine", None
    return engine.model_name, str(engine.network.target.device)


def _prompt(ask: Ask) -> object:
    return ask.prompt if isinstance(ask.prompt, str) else {"prompt_token_ids": list(ask.prompt)}


def _params(ask: Ask) -> SamplingParams:
    return SamplingParams(
        temperature=0, max_tokens=ask.output_tokens, ignore_eos=ask.ignore_eos, detokenize=isinstance(ask.prompt, str)
    )


def _ending(output: RequestOutput) -> Ending:
    (one,) = output.outputs
    counts: dict[str, Any] = {
        "prompt_tokens": len(output.prompt_token_ids),
        "output_tokens": len(one.token_ids),
        "cached_tokens": output.num_cached_tokens,
        "preemptions": output.num_preemptions,
    }
    if one.finish_reason == "error":
        return Ending(error="engine", message=str(one.stop_reason), **counts)
    if one.finish_reason == "abort":
        return Ending(error="cut", message="the request was aborted", **counts)
    return Ending(finish_reason=one.finish_reason, **counts)


def _record(ask: Ask, output: RequestOutput) -> Record:
    """Of a request that nobody read along with: its first token and its end."""
    times = output.metrics
    ended = times.arrival_time if times.finished_time is None else times.finished_time
    pieces = [] if times.first_token_time is None else [(times.first_token_time, 1)]
    return Record(ask, times.arrival_time, times.arrival_time, pieces, ended, _ending(output))
