"""How requests end: each once, by its own doing, by a failure, or with the engine."""

from __future__ import annotations

import logging
import time

from bestiary.core.errors import EngineError, RequestError
from bestiary.core.outputs import FinishReason
from bestiary.core.runtime.answers import Answer, Answers
from bestiary.core.runtime.batch import Batch
from bestiary.core.runtime.containment import cause, contained
from bestiary.core.runtime.doubt import compute_alone
from bestiary.core.runtime.executor import Executor
from bestiary.core.runtime.request import Request, State
from bestiary.core.runtime.restrictions import Guide, Restrictions
from bestiary.core.runtime.scheduler import Scheduler
from bestiary.core.runtime.slow_calls import SlowCalls
from bestiary.core.runtime.stats import Meters

log = logging.getLogger("bestiary.runtime.endings")


class Endings:
    """The answers of the requests under way, until their end.

    Attributes:
        ended: requests that ended since the list was last taken.
    """

    def __init__(
        self, executor: Executor, scheduler: Scheduler, meters: Meters, slow_calls: SlowCalls, *, vocab_size: int
    ) -> None:
        self._executor, self._scheduler = executor, scheduler
        self._meters, self._slow_calls = meters, slow_calls
        self.answers = Answers(self.blame, self._stopped)
        self.restrictions = Restrictions(vocab_size, slow_calls)
        self.ended: list[Request] = []

    def begin(self, request: Request, answer: Answer, guide: Guide | None) -> None:
        """A request is under way; if anything fails until then, it ends with that.

        Raises:
            RequestError: it could not run even alone.
        """
        try:
            self.answers.add(request, answer)
            self.restrictions.add(request, guide)
            self._scheduler.submit(request)
        except BaseException as error:
            self.answers.drop(request)
            self.restrictions.drop(request)
            if isinstance(error, RequestError):
                raise
            self.refuse(request, answer, contained(error))

    def refuse(self, request: Request, answer: Answer, error: BaseException) -> None:
        """End a request with what kept it from beginning."""
        log.error("request %s did not begin: %s", request.id, error, exc_info=error)
        request.state, request.finish_reason, request.stop_reason = State.FINISHED, "error", cause(error)
        try:
            answer.end(time.monotonic())
        except BaseException as failed:
            log.error("request %s: %s", request.id, contained(failed), exc_info=failed)
        self._meters.ended(request)

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: int | str | None = None,
        *,
        trusted: bool = True,
    ) -> bool:
        """End a request for a reason that is not its token; False if it had ended already."""
        if not self._scheduler.finish(request, reason, stop_reason, trusted=trusted):
            return False
        self.ended.append(request)
        self.tell(request, time.monotonic())
        return True

    def tell(self, request: Request, now: float) -> None:
        """The one terminal event of a request, if it is not past."""
        if self.answers.end(request, now):
            self.restrictions.drop(request)
            self._slow_calls.ended(request.id)
            self._meters.ended(request)

    def unusable(self, request: Request, found: str | None) -> None:
        """A row that gave no token: its request's own code and restrictions are what was ``found``, or its numbers are broken."""
        if found is not None:
            self.finish(request, "error", found)
        elif not compute_alone(self._scheduler, request):
            self.finish(request, "error", "numerical_error: the logits have no finite maximum", trusted=False)

    def blame(self, request: Request, error: BaseException) -> None:
        """End a request whose own processing failed; if it had ended already, its reason is corrected."""
        log.error("request %s failed: %s", request.id, error, exc_info=error)
        reason = cause(error)
        if not self.finish(request, "error", reason):
            request.finish_reason, request.stop_reason = "error", reason

    def fail(self, batch: Batch, error: BaseException) -> None:
        """A step failed: its requests end, and what it stored is not trusted; who may have taken it over is computed again.
        If there was no memory for it, so are its requests, in smaller steps, as long as steps can be made smaller."""
        log.error("step %d failed: %s", batch.number, error, exc_info=error)
        reason, scheduler = cause(error), self._scheduler
        again = _out_of_memory(error) and self._executor.failure is None and scheduler.limit.retreat()
        if again:
            log.warning("steps have at most %d tokens from now on", scheduler.max_num_tokens)
        since = scheduler.distrust(batch.number)
        for request in batch.requests(scheduler.slots):
            if again:
                scheduler.repeat(request)
            else:
                self.finish(request, "error", reason, trusted=False)
        for request in since:
            scheduler.repeat(request)

    def bury(self, failure: EngineError) -> None:
        """The engine is dead, between two steps: end everything."""
        for request in [*self._scheduler.running, *self._scheduler.waiting]:
            try:
                self.finish(request, "error", str(failure), trusted=False)
            except Exception as error:  # its blocks are lost with the engine; whoever waits for it is told all the same
                log.error("request %s: %s", request.id, error, exc_info=error)
                self._close(request, failure)
        self.ended = []

    def give_up(self, failure: EngineError) -> None:
        """The engine is dead, in a step that another thread is in: end everything, and leave what it works on alone."""
        for request in self.answers.requests():
            self._close(request, failure)

    def _close(self, request: Request, failure: EngineError) -> None:
        """End a request of a dead engine, whose blocks nobody counts any more."""
        if request.state is not State.FINISHED:
            request.state, request.finish_reason, request.stop_reason = State.FINISHED, "error", str(failure)
        self.tell(request, time.monotonic())

    def _stopped(self, request: Request, stop: str) -> None:
        """A stop string is there, perhaps with a token that had ended the request already."""
        if not self.finish(request, "stop", stop) and request.finish_reason == "length":
            request.finish_reason, request.stop_reason = "stop", stop


def _out_of_memory(error: BaseException) -> bool:
    """Of the host or a device; torch's own class is known by its name, since nothing here knows torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
