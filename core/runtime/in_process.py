"""The executor that runs its one rank in this process."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bestiary.core import device as devices
from bestiary.core.errors import EngineError
from bestiary.core.runtime.executor import Pending
from bestiary.core.runtime.messages import SampledMessage, SampleMessage, StepMessage
from bestiary.core.runtime.worker import Worker


class InProcess:
    """See :class:`~bestiary.core.runtime.executor.Executor`."""

    takes_functions = True

    def __init__(self, worker: Worker, device: torch.device, *, overlaps: bool | None = None) -> None:
        self.failure: EngineError | None = None
        self.overlaps = devices.overlaps(device) if overlaps is None else overlaps
        self._worker: Worker | None = worker
        self._device = device

    @property
    def worker(self) -> Worker:
        """The rank.

        Raises:
            EngineError: after ``close``.
        """
        if self._worker is None:
            raise EngineError("E-RUN-CLOSED", "engine", "it has been closed")
        return self._worker

    def forward(self, step: StepMessage) -> None:
        try:
            self.worker.forward(step)
        except EngineError as error:
            self.failure = self.failure or error
            raise
        except Exception:
            self._examine()
            raise

    def sample(self, wanted: SampleMessage) -> Pending:
        try:
            return _Examined(self.worker.sample(wanted), self._examine)
        except Exception:
            self._examine()
            raise

    def report(self) -> None:
        pass  # the threads are this process's own

    def abandon(self) -> None:
        pass  # a thread can't be ended from outside

    def close(self) -> None:
        self._worker = None
        self.failure = self.failure or EngineError("E-RUN-CLOSED", "engine", "it has been closed")

    def _examine(self) -> None:
        """After a failure: a device that no longer answers ends the engine."""
        try:
            devices.synchronize(self._device)
        except Exception as error:
            self.failure = EngineError(
                "E-RUN-DEVICE",
                f"device {self._device}",
                "does not work any more",
                found=f"{type(error).__name__}: {error}",
                hint="load the engine again in a new process",
            )


class _Examined:
    """Results whose device is examined when they can't be read: what fails there shows there first."""

    def __init__(self, pending: Pending, examine: Callable[[], None]) -> None:
        self._pending, self._examine = pending, examine

    def read(self) -> SampledMessage:
        try:
            return self._pending.read()
        except Exception:
            self._examine()
            raise
