"""No false alarm: every architecture of the zoo, in float32 and in 16 bit, against transformers."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from bestiary.converters.convert import weight_map
from bestiary.core.checkpoint.parameters import parameters
from bestiary.core.conformance.model_case import Suite
from bestiary.core.diff.compare import Prompt, compare, standards
from bestiary.core.engine.build import unmeasured
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.transformers_side import TransformersSide
from bestiary.testing import ModelConformance

#: A kit's module, and the config of it that has most of what sets the architecture apart.
ARCHITECTURES = {
    "bestiary_llama.conformance": "biased",
    "bestiary_qwen.qwen2.conformance": None,
    "bestiary_qwen.qwen2_moe.conformance": None,
    "bestiary_qwen.qwen3.conformance": None,
    "bestiary_qwen.qwen3_moe.conformance": None,
    "bestiary_mistral.mistral.conformance": None,
    "bestiary_mistral.ministral.conformance": None,
    "bestiary_mistral.mixtral.conformance": None,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_false_alarm(name: str, tmp_path: Path) -> None:
    found = vars(importlib.import_module(name)).values()
    (kit,) = (
        one for one in found if isinstance(one, type) and issubclass(one, ModelConformance) and hasattr(one, "configs")
    )
    suite = Suite(kit, tmp_path)
    case = suite.cases[ARCHITECTURES[name] or next(iter(suite.cases))]
    assert case.report is not None
    theirs = TransformersSide.load(
        case.source,
        weight_map(suite.model, "hf", case.config),
        parameters(suite.model, case.config),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        options = BuildOptions(
            device="cpu", max_batch_size=4, max_num_tokens=64, dtype=str(dtype).removeprefix("torch.")
        )
        unmeasured(case.checkpoint, tmp_path / options.dtype, host=suite.host, options=options)
        ours = EngineSide(load_engine(tmp_path / options.dtype, host=suite.host, num_blocks=4), "ours")
        prompts = [Prompt.of(case.tokens(24), ours.longest)]
        comparison = compare(ours, standards(theirs, prompts, dtype))
        assert comparison.first is None and comparison.carried is None and not comparison.spoiled
        assert max(row.excess for row in comparison.rows) < 0.6
        layers = case.config.num_hidden_layers
        assert len(comparison.rows) > 13 * layers, "most tensors of a layer have a counterpart"
