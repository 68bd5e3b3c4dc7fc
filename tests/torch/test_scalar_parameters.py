"""Parameters of no dimensions: converted, built, divided, traced, made up and compared as any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scalar_model
import torch

from bestiary import LLM, ops
from bestiary.core.conformance import model_files, model_logits
from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case, Suite
from bestiary.core.conformance.model_run import run
from bestiary.core.observe.record import record
from bestiary.core.ops.collective import Ranks
from bestiary.core.plugins import PluginHost
from bestiary.core.program.passes.shard import shard
from bestiary.core.program.program import Part, Weight
from bestiary.core.program.shapes import Geometry, infer
from bestiary.core.program.trace import trace
from bestiary.core.progress import Silent
from bestiary.spec import ModelConfig

PLUGINS = ["scalar_model"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    class Loaded(scalar_model.ScalarConformance):
        plugins = PLUGINS

    return Suite(Loaded, tmp_path_factory.mktemp("scalars")).cases["tiny"]


def _config(directory: Path) -> Path:
    config = {**scalar_model.TINY, "architectures": ["ScalarsForCausalLM"], "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_weight_of_one_part_has_its_shape() -> None:
    assert Weight("gain", (Part("gain", ()),)).shape == ()
    assert Weight("q+k", (Part("q", (4, 6)), Part("k", (2, 6)))).shape == (6, 6)


CHECKS: dict[str, Callable[[Case, Findings], object]] = {
    "convert": model_files.converts,
    "coverage": model_files.coverage,
    "export": lambda case, findings: model_files.exports(case),
    "reference mode": model_logits.reference_mode,
    "bfloat16": model_logits.bfloat16,
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_kits_checks_pass(check: str, case: Case) -> None:
    CHECKS[check](case, Findings([]))


@pytest.mark.parametrize("op", [ops.add, ops.mul])
def test_a_scalar_widens_no_tensor(op: Any) -> None:
    x, y = torch.ones(3, 4, dtype=torch.bfloat16), torch.ones(())
    assert op.fake(x, y).dtype is op.reference(x, y).dtype is torch.bfloat16


@pytest.mark.slow  # two ranks are two processes
def test_the_whole_kit_passes() -> None:
    host = PluginHost.load(plugins=PLUGINS)
    report = run(host.model("scalars"), host, plugins=PLUGINS, progress=Silent())
    assert report.passed, [one for one in report.checks if one.outcome == "failed"]


def test_every_rank_has_a_scalar_whole() -> None:
    with torch.device("meta"):
        model = scalar_model.Scalars(ModelConfig.parse(scalar_model.TINY))
    program = trace(model)
    shard(program, model, Ranks(1, 2))
    parts = {part.parameter: part for weight in program.weights() for part in weight.parts}
    assert parts["layers.0.up.scale"] == Part("layers.0.up.scale", ())
    assert parts["layers.0.up.weight"].shape == (16, 24)
    shapes = infer(program, Geometry(torch.bfloat16, torch.bfloat16, 16, 8))
    assert {str(shapes[value]) for value in parts_of_no_dims(program)} == {"bfloat16[]"}


def parts_of_no_dims(program: Any) -> list[Weight]:
    return [weight for weight in program.weights() if not weight.shape]


@pytest.mark.parametrize("reference", [False, True])
def test_made_up_weights_are_ones_and_the_calls_are_recorded(reference: bool, tmp_path: Path) -> None:
    source = _config(tmp_path)
    with LLM(source, weights="random", dtype="float32", tokenizer=None, plugins=PLUGINS, reference=reference) as llm:
        (answer,) = llm.generate([3, 4, 5], use_tqdm=False)
        assert len(answer.outputs[0].token_ids) == 16
        if not reference:
            calls = [call for step in record(llm, [[3, 4, 5]], 2).steps for call in step.calls]
            assert any(call.op == "mul" and "f32[]" in call.takes for call in calls)


def test_a_sum_with_a_scalar_is_no_residual_sum(tmp_path: Path) -> None:
    with LLM(_config(tmp_path), weights="random", dtype="float32", tokenizer=None, plugins=PLUGINS) as llm:
        fused = [i for i in llm.engine.network.program.instructions if i.target.name == "add_rms_norm"]
        values = [value for instruction in fused for value in instruction.args[:2]]
        assert values and not any(isinstance(value, Weight) for value in values)
