"""From what a caller names to a side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bestiary.converters.convert import weight_map
from bestiary.core.checkpoint.manifest import Manifest
from bestiary.core.checkpoint.parameters import parameters, parse_config
from bestiary.core.engine.engine import EngineManifest
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.options import AT_LOAD, BuildOptions
from bestiary.core.errors import ConfigError
from bestiary.core.opening import check_built
from bestiary.core.plugins import PluginHost
from bestiary.core.prepare import prepare
from bestiary.core.progress import Progress
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.transformers_side import TransformersSide


def engine_side(
    model: str | Path,
    *,
    host: PluginHost,
    said: Mapping[str, Any],
    longest: int | None,
    needs_tokenizer: bool,
    progress: Progress,
) -> EngineSide:
    """The engine of a model, converted and built into the cache where that is needed, with a KV cache for one sequence.

    Args:
        said: build options that the caller named; those of an engine that is built already must agree.
        longest: most tokens of a sequence; None: what the engine was built for.

    Raises:
        ConfigError: the engine is divided among ranks, which can't be looked into from here.
    """
    directory = prepare(
        model,
        host=host,
        options=BuildOptions(**said),
        needs_tokenizer=needs_tokenizer,
        progress=progress,
    )
    check_built(directory, said)
    options = EngineManifest.read(directory).options
    if options.tensor_parallel * options.pipeline_parallel > 1:
        raise ConfigError(
            "E-SIDE-RANKS",
            directory.name,
            "is divided among ranks, whose tensors can't be compared one by one",
            found=f"{options.tensor_parallel * options.pipeline_parallel} ranks",
            expected="1",
            hint="build an engine of the same checkpoint for one process",
        )
    tokens = options.max_seq_len if longest is None else min(longest, options.max_seq_len or longest)
    assert tokens is not None, "a built engine knows its longest sequence"
    changes = {name: value for name, value in said.items() if name in AT_LOAD}
    return loaded_side(directory, host, tokens, directory.name, progress=progress, **changes)


def transformers_side(
    path: Path, manifest: Manifest, host: PluginHost, *, dtype: torch.dtype, device: torch.device
) -> TransformersSide:
    """transformers on a Hugging Face directory, its tensors under the zoo's names.

    Args:
        manifest: of the checkpoint that was made of it, or of which it is an export.

    Raises:
        PluginError: transformers is not installed, or does not take the model.
    """
    model = host.model(manifest.model)
    config = parse_config(model, manifest.config)
    return TransformersSide.load(
        path, weight_map(model, "hf", config), parameters(model, config), dtype=dtype, device=device
    )


def loaded_side(directory: Path, host: PluginHost, longest: int, label: str, **options: Any) -> EngineSide:
    """An engine with a KV cache for one sequence of ``longest`` tokens, and its dtypes behind its label.

    Args:
        options: of ``load_engine``.
    """
    block = EngineManifest.read(directory).options.block_size
    # The last block belongs to nobody, and one more is for a sequence that fills its last.
    blocks = -(-longest // block) + 2
    engine = load_engine(directory, host=host, num_blocks=blocks, **{**options, "graphs": False})
    dtype = str(engine.network.target.dtype).removeprefix("torch.")
    side = EngineSide(engine, label if label.endswith(f", {dtype}") else f"{label}, {dtype}")
    if side.few_bits:
        side.label += f", KV cache {side.few_bits}"
    return side
