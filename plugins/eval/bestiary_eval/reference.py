"""transformers on the same items: lm-eval's own class for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from bestiary import DataError
from bestiary.tools import Progress

_AT_ONCE = 8


class TransformersLM(HFLM):  # type: ignore[misc]
    """lm-eval's class as it is, with its bars on a terminal only."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As lm-eval's."""
        return super().loglikelihood(requests, disable_tqdm=_hidden())

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """As lm-eval's."""
        return super().loglikelihood_rolling(requests, disable_tqdm=_hidden())

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As lm-eval's."""
        return super().generate_until(requests, disable_tqdm=_hidden())


def _hidden() -> bool:
    return not sys.stderr.isatty()


def load(
    directory: Path,
    name: str,
    progress: Progress,
    *,
    tokenizer: Path | None,
    batch_size: int | None,
    max_length: int,
    device: str | None,
) -> TransformersLM:
    """transformers' model of a Hugging Face directory, in the dtype that its files have.

    Args:
        name: the model's, for the error.
        max_length: most tokens before the last one of a text that is scored.

    Raises:
        DataError: transformers can't load it.
    """
    progress.start("transformers", None, "")
    try:
        made = TransformersLM(
            pretrained=str(directory),
            tokenizer=str(tokenizer or directory),
            dtype="auto",
            batch_size=batch_size or _AT_ONCE,
            max_length=max_length,
            device=device or _device(),
        )
    except Exception as error:  # whatever a class of transformers' raises
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        hint = "--against hf:DIR takes another Hugging Face directory"
        problem = f"transformers can't load it: {type(error).__name__}: {text}"
        raise DataError("E-EVAL-HF", name, problem, hint=hint) from error
    progress.finish(f"{made.model.dtype}".removeprefix("torch."))
    return made


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
