"""From what a person names to the sides of ``bestiary quality``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bestiary.core.engine.engine import EngineManifest
from bestiary.core.engine.options import BuildOptions
from bestiary.core.hf_directory import hf_directory
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Progress
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.opening import engine_side, transformers_side
from bestiary.core.sides.side import Side


def open_sides(
    models: Sequence[str],
    against: str,
    *,
    said: Mapping[str, Any],
    against_dtype: str | None,
    window: int,
    host: PluginHost,
    progress: Progress,
) -> tuple[list[EngineSide], Side, int]:
    """The models, all loaded, the reference, and how long windows may be.

    Args:
        against: ``hf`` for transformers on the first model itself, or another model.
        said: build options of the models; the reference has its device only.
        against_dtype: compute dtype of the reference; None: its own, transformers' float32.
        window: how long windows are to be.

    Raises:
        BestiaryError: of the kind that fits.
    """
    dtype = {} if against_dtype in (None, "auto") else {"dtype": BuildOptions(dtype=str(against_dtype)).dtype}
    ours = [
        engine_side(model, host=host, said=said, longest=window, needs_tokenizer=not number, progress=progress)
        for number, model in enumerate(models)
    ]
    window = min(window, *(side.engine.max_seq_len for side in ours))
    if against == "hf":
        first = ours[0].engine
        manifest = EngineManifest.read(first.directory).checkpoint
        chosen = getattr(torch, dtype.get("dtype", "float32"))
        device = first.network.target.device
        with hf_directory(models[0], host=host, progress=progress) as folder:
            return ours, transformers_side(folder, manifest, host, dtype=chosen, device=device), window
    other = {name: value for name, value in said.items() if name == "device"} | dtype
    reference = engine_side(against, host=host, said=other, longest=window, needs_tokenizer=False, progress=progress)
    return ours, reference, min(window, reference.engine.max_seq_len)
