"""What callers ask of an engine: prompts become jobs, jobs run, and whoever leaves early takes his with him."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bestiary.core.async_answer import AsyncAnswer
from bestiary.core.batch_progress import BatchProgress
from bestiary.core.beam_params import BeamSearchParams
from bestiary.core.driver import Driver
from bestiary.core.errors import EngineError, UsageError
from bestiary.core.jobs import Job
from bestiary.core.outputs import RequestOutput, StreamPiece
from bestiary.core.sampling_params import SamplingParams
from bestiary.core.submission import Submission

#: How one prompt is answered, and how several are: one for all, or one for each.
One = SamplingParams | BeamSearchParams | None
Params = SamplingParams | BeamSearchParams | Sequence[SamplingParams | BeamSearchParams] | None


class Calls:
    """Runs what is asked for. What is refused raises RequestError before anything of the call has run.

    Args:
        driver: steps the engine.
        submission: makes jobs.
    """

    def __init__(self, driver: Driver, submission: Submission) -> None:
        self._driver, self._submission = driver, submission
        self.closed = False

    def refuse_if_closed(self) -> None:
        """Raise EngineError after the end."""
        if self.closed:
            raise EngineError("E-RUN-CLOSED", "LLM", "it has been closed")

    def whole(
        self, prompts: object, params: Params, *, shown: bool, taps: Sequence[str] | None = None
    ) -> list[RequestOutput]:
        """Outputs, in the order of the prompts.

        Args:
            taps: names of tensors that the requests keep.
            shown: a line tells how far it is.

        Raises:
            EngineError: the engine died.
        """
        jobs, driver = self._prepare(prompts, params, taps=taps), self._driver
        try:
            for job in jobs:
                driver.submit(job)
            with BatchProgress(jobs, driver.loop, shown=shown) as progress:
                driver.run(progress.done, progress.update, jobs)
        finally:
            # Whatever ended the call early, nothing of it stays in the engine.
            for job in jobs:
                driver.post(job.abort)
        outputs = [job.output() for job in jobs]
        if any(answer.finish_reason == "error" for out in outputs for answer in out.outputs):
            driver.loop.refuse_if_dead()
        return outputs

    def pieces(self, prompt: object, params: One, taps: Sequence[str] | None = None) -> Iterator[StreamPiece]:
        """One answer as it comes; what is wrong with it is raised now. Leaving the iterator ends the request."""
        return self._read(self._prepare_one(prompt, params, "stream", taps=taps))

    def awaited(self, prompt: object, params: One, taps: Sequence[str] | None = None) -> AsyncAnswer:
        """One answer, in asyncio."""
        return AsyncAnswer(
            self._driver,
            lambda on_news: self._prepare_one(prompt, params, "generate_async", on_news=on_news, taps=taps),
        )

    def _prepare(self, prompts: object, params: Params, **options: Any) -> list[Job]:
        self.refuse_if_closed()
        self._driver.loop.refuse_if_dead()
        jobs = self._submission.prepare(prompts, params, **options)
        for job in jobs:
            job.check(self._driver.loop.scheduler)
        return jobs

    def _prepare_one(self, prompt: object, params: One, caller: str, **options: Any) -> Job:
        """A job that someone reads along with."""
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping) and "role" in prompt[0]:
            prompt = self._submission.chat_prompts(prompt, None, {})
        jobs = self._prepare(prompt, params, streams=True, **options)
        if len(jobs) != 1:
            raise UsageError("E-REQ-STREAM", caller, "takes one prompt", found=f"{len(jobs)} prompts")
        return jobs[0]

    def _read(self, job: Job) -> Iterator[StreamPiece]:
        driver = self._driver
        driver.submit(job)
        try:
            done = False
            while not done:
                if not job.finished:
                    driver.step(jobs=[job])
                # Another call's steps may have finished it.
                done = job.finished
                yield from job.pieces()
        finally:
            driver.post(job.abort)
