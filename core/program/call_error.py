"""A call of a step that raises, with the name of who did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bestiary.core.errors import BestiaryError, PluginError, said
from bestiary.core.program.calls import REFERENCE
from bestiary.core.program.program import Instruction

_LONGEST = 300  # characters of what was raised: a compiler's log may be thousands


class CallError(PluginError):
    """A kernel, or a function of torch's that a model calls, raised.

    Args:
        kernel: its name; None for a function of torch's.
        tokens: of the step.
        error: what it raised.
    """

    def __init__(self, instruction: Instruction, kernel: str | None, tokens: int, error: Exception) -> None:
        self.instruction, self.kernel, self.tokens = instruction, kernel, tokens
        name = instruction.target.name
        text = " ".join(said(error).split())
        text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
        self.raised = f"{type(error).__name__}: {text}"
        where = f"{instruction.scope or 'the model'}, in a step of {tokens} token{'s' * (tokens != 1)}"
        super().__init__(
            "E-KERNEL-FAILED",
            f"kernel {name}={kernel}" if kernel else name,
            f"raised {self.raised}, in {where}",
            hint=None if kernel not in (None, REFERENCE) else "there is nothing to put in its place: ask its author",
        )


@contextmanager
def named(instruction: Instruction, kernel: str | None, tokens: int) -> Iterator[None]:
    """Whatever is raised inside names the call; a lack of memory and errors of the project's own stay what they are.

    Raises:
        CallError: in place of what was raised.
    """
    try:
        yield
    except (BestiaryError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CallError(instruction, kernel, tokens, error) from error
