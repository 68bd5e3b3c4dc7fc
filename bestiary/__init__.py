"""bestiary: a plugin-extensible model zoo for large language models.

Importing this module costs no torch; ``LLM`` and the rest are fetched when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import pluggy

from bestiary.core.errors import (
    BestiaryError,
    ConfigError,
    DataError,
    EngineError,
    MissingInputError,
    OutputError,
    PluginError,
    ReadWriteError,
    RequestError,
    UsageError,
)
from bestiary.core.version import __version__
from bestiary.spec import Command, Fusion, Kernel, Model, Op, Reader

if TYPE_CHECKING:
    from bestiary.core.async_answer import AsyncAnswer
    from bestiary.core.beam_params import BeamSearchParams
    from bestiary.core.guided import Guided
    from bestiary.core.llm import LLM
    from bestiary.core.outputs import CompletionOutput, Logprob, RequestOutput, StreamPiece
    from bestiary.core.runtime.blocks import CacheEvent
    from bestiary.core.runtime.stats import EngineStats
    from bestiary.core.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "AsyncAnswer",
    "BeamSearchParams",
    "BestiaryError",
    "CacheEvent",
    "Command",
    "CompletionOutput",
    "ConfigError",
    "DataError",
    "EngineError",
    "EngineStats",
    "Fusion",
    "Guided",
    "Kernel",
    "Logprob",
    "MissingInputError",
    "Model",
    "Op",
    "OutputError",
    "PluginError",
    "ReadWriteError",
    "Reader",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "StreamPiece",
    "UsageError",
    "__version__",
    "hookimpl",
]

hookimpl = pluggy.HookimplMarker("bestiary")

if not TYPE_CHECKING:
    _LAZY = {
        "LLM": "bestiary.core.llm",
        "AsyncAnswer": "bestiary.core.async_answer",
        "BeamSearchParams": "bestiary.core.beam_params",
        "CacheEvent": "bestiary.core.runtime.blocks",
        "CompletionOutput": "bestiary.core.outputs",
        "EngineStats": "bestiary.core.runtime.stats",
        "Guided": "bestiary.core.guided",
        "Logprob": "bestiary.core.outputs",
        "RequestOutput": "bestiary.core.outputs",
        "SamplingParams": "bestiary.core.sampling_params",
        "StreamPiece": "bestiary.core.outputs",
    }

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            return getattr(import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'bestiary' has no attribute {name!r}")
