"""Random weights for a ``config.json``, as transformers makes and saves them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from bestiary.converters.tokenizer import FILES
from bestiary.core.errors import MissingInputError, PluginError
from bestiary.core.sides.transformers_side import no_bars


def random_model(source: Path, target: Path, *, seed: int) -> Path:
    """Write a Hugging Face directory of a config's shape.

    Norms of 1 and biases of 0 would hide that they are not applied, so noise is added to every vector.

    Raises:
        MissingInputError: there is no config.json.
        PluginError: transformers is not installed, or does not know the architecture.
    """
    if not (source / "config.json").is_file():
        raise MissingInputError(
            "E-DIFF-CONFIG", source.name or str(source), "has no config.json, of which random weights are made"
        )
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        hint = "pip install 'bestiary[convert]'"
        raise PluginError("E-SIDE-TRANSFORMERS", "transformers", "is not installed", hint=hint) from error
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            module = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in module.parameters():
                    if parameter.dim() == 1:
                        parameter.add_(torch.randn_like(parameter) * 0.2)
        with no_bars(logging):
            module.save_pretrained(target)
    except Exception as error:
        raise PluginError(
            "E-SIDE-TRANSFORMERS", source.name, "transformers makes no model of this config", found=str(error)[:200]
        ) from error
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return target
