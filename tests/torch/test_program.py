"""The step program: what tracing records, what the passes make of it, and what they leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, load, logits, make_engine, whole
from torch import nn

from bestiary import LLM, ConfigError, DataError, Fusion, Kernel, Op, PluginError, UsageError, hookimpl, ops
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost
from bestiary.core.program.bound import BoundCall
from bestiary.core.program.passes.fuse import fuse, pattern_of
from bestiary.core.program.passes.merge import merge_linears
from bestiary.core.program.passes.taps import insert_taps
from bestiary.core.program.plan import Plan
from bestiary.core.program.program import Program
from bestiary.core.program.shapes import Geometry, infer
from bestiary.core.program.trace import trace
from bestiary_llama.config import LlamaConfig
from bestiary_llama.model import Llama

GEOMETRY = Geometry(torch.float32, torch.float32, 16, 8)


def _llama(**changes: Any) -> nn.Module:
    config = LlamaConfig.parse({**SMALL, "architectures": ["LlamaForCausalLM"], **changes})
    with torch.device("meta"):
        return Llama(config)


def _names(program: Program) -> list[str]:
    return [instruction.target.name for instruction in program.instructions]


def test_a_trace_is_flat_and_knows_its_modules() -> None:
    program = trace(_llama())
    assert _names(program).count("linear") == 3 * 7
    assert _names(program).count("rotary_table") == 1, "layers that rotate alike share their angles"
    assert list(program.outputs) == ["logits"]
    assert "layers.2.attention" in program.places
    assert len(program.caches) == 3


def test_a_tied_weight_is_one_weight() -> None:
    weights = [weight.name for weight in trace(_llama(tie_word_embeddings=True)).weights()]
    assert weights.count("embed.weight") == 1
    assert "head.weight" not in weights


def test_shapes_follow_tokens_and_rows() -> None:
    program = trace(_llama())
    shapes = infer(program, GEOMETRY)
    assert str(shapes[program.outputs["logits"]]) == "float32[R, 96]"
    assert str(shapes[program.places["layers.0.attention"]]) == "float32[T, 48]"


class _Peeks(nn.Module):
    def forward(self, step: Any) -> Any:
        return step.tokens if step.tokens.sum() > 0 else step.positions


def test_a_forward_that_looks_at_values_is_refused_with_a_sentence() -> None:
    with pytest.raises(PluginError, match=r"_Peeks: the forward can't be traced.*control flow"):
        trace(_Peeks())


def test_merging_products_leaves_one_product_for_each_input() -> None:
    program = trace(_llama())
    assert merge_linears(program) == 3 * (2 + 1)
    assert _names(program).count("linear") == 3 * 4
    infer(program, GEOMETRY)


def test_a_fusion_crosses_the_border_between_layers() -> None:
    program = trace(_llama())
    assert fuse(program, pattern_of(ops.add_rms_norm)) == 6
    fused = [i for i in program.instructions if i.target is ops.add_rms_norm]
    crossing = next(i for i in fused if i.args[2].name == "layers.1.attention_norm.weight")
    producers = program.producers()
    assert {producers[value].scope.split(".")[1] for value in crossing.args[:2]} == {"0"}


def test_a_fusion_of_unconnected_calls_keeps_to_its_module() -> None:
    program = trace(_llama())
    assert fuse(program, pattern_of(ops.rope_kv_write)) == 3
    assert "rope" not in _names(program)
    assert "kv_write" not in _names(program)


def _no_inputs(generator: Any, dtype: Any) -> Any:
    return iter(())


@ops.op(inputs=_no_inputs, name="t::norm_of_sum")
def norm_of_sum(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return ops.rms_norm(ops.add(x, y), weight, eps)


def test_a_fusion_that_would_swallow_a_value_someone_reads_is_left_out() -> None:
    program = trace(_llama())
    before = program.listing()
    # Every residual sum but the last is read by the next one too; the last is read by the final norm alone.
    assert fuse(program, pattern_of(norm_of_sum)) == 1
    tapped = trace(_llama())
    insert_taps(tapped, ["layers.2"])
    assert fuse(tapped, pattern_of(norm_of_sum)) == 0
    assert before == tapped.listing()


def test_a_tap_of_no_module_names_those_near() -> None:
    with pytest.raises(UsageError, match=r"layers\.1\.atention.*layers\.1\.attention"):
        insert_taps(trace(_llama()), ["layers.1.atention"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    directory = tmp_path_factory.mktemp("tiny")
    return directory, make_engine(directory, PluginHost.load())


def test_taps_return_what_transformers_has_at_that_place(tiny: tuple[Path, Any]) -> None:
    directory, model = tiny
    tokens = list(range(3, 20))
    outputs = load(directory, PluginHost.load(), taps=["layers.0", "layers.1"]).runner.forward(whole(tokens, [2, 4]))
    with torch.no_grad():
        hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    for index in (0, 1):
        assert (outputs[f"layers.{index}"] - hidden[index + 1][0]).abs().max() < 1e-4


def test_a_plan_survives_its_file_and_a_damaged_one_is_refused(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    directory, _ = tiny
    (path,) = (directory / "engine" / "plan").iterdir()
    plan = Plan.read(path)
    assert plan.as_dict() == Plan.read(path).as_dict()
    assert "fusion residual_norm: applied 6 times" in plan.table()
    assert "linear(float32[T, 48], float32[96, 48], None)" in plan.table()
    broken = tmp_path / path.name
    broken.write_text(path.read_text().replace('"choices"', '"chances"'))
    with pytest.raises(DataError, match="damaged plan"):
        Plan.read(broken)


def test_a_kernel_named_by_the_user_runs_and_an_unknown_one_is_refused(tiny: tuple[Path, Any]) -> None:
    directory, _ = tiny
    host = PluginHost.load()
    engine = load(directory, host, kernels={"rms_norm": "reference"})
    bound = {
        instruction.target.name: engine.runner.program.kernel(instruction, engine.network.limits).name
        for instruction in engine.network.program.instructions
        if isinstance(instruction.target, ops.OpDeclaration)
    }
    assert bound["rms_norm"] == "reference"
    assert bound["linear"] == "torch"
    with pytest.raises(ConfigError, match=r"kernel rms_norm=fast.*reference or torch"):
        load(directory, host, kernels={"rms_norm": "fast"})
    with pytest.raises(ConfigError, match=r"linear=widened.*16-bit"):
        load(directory, host, kernels={"linear": "widened"})


def wrong_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor) -> None:
    out.copy_(ops.rms_norm.reference(x, weight, eps) * 1.01)


def returned_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor) -> torch.Tensor:
    return out.copy_(ops.rms_norm.reference(x, weight, eps))


def moved_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor) -> None:
    out.data = ops.rms_norm.reference(x, weight, eps)


def copied(constants: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"weight": constants["weight"].clone()}


def consuming_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor) -> None:
    out.copy_(ops.rms_norm.reference(x, weight, eps))
    weight.mul_(0.5)


def other_parameters(x: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor) -> None:
    pass


class _BrokenKernel:
    def __init__(self, run: str) -> None:
        self.run = run

    @hookimpl
    def bestiary_register_kernels(self, register: Any) -> None:
        pack = "broken_kernels:copied" if self.run == "consuming_norm" else None
        register(Kernel(op="rms_norm", name="broken", run=f"broken_kernels:{self.run}", pack=pack))


@pytest.mark.parametrize(
    ("run", "complaint"),
    [
        (
            "wrong_norm",
            r"rms_norm=broken at rms_norm\(float32\[T, 48\].*differs from the op's reference at 1 tokens; found an error "
            r"\d+ times the tolerance at \[0, \d+\] \(at most 0.\d+ absolute, 0.01 relative\)",
        ),
        ("returned_norm", r"rms_norm=broken at .* must fill out as it is given.*; found it returned a Tensor"),
        ("moved_norm", r"rms_norm=broken at .* must fill out as it is given.*; found other memory or another shape"),
        ("other_parameters", r"are not the op's"),
        ("consuming_norm", r"rms_norm=broken at .* differs from the op's reference at 1 tokens, called again"),
    ],
)
def test_a_wrong_kernel_stops_the_build_by_name(
    tiny: tuple[Path, Any], tmp_path: Path, run: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "broken_kernels", sys.modules[__name__])
    host = PluginHost.load(plugins=[_BrokenKernel(run)])
    with pytest.raises(PluginError, match=complaint):
        build(tiny[0] / "ckpt", tmp_path / "engine", host=host, options=BuildOptions(device="cpu"))
    assert not (tmp_path / "engine").exists()


class _ForeignFusion:
    """A plugin's own fused op, its kernel, and the fusion that puts it into models."""

    @hookimpl
    def bestiary_register_ops(self, register: Any) -> None:
        register(Op(name="t::norm_of_sum", declaration="broken_kernels:norm_of_sum"))

    @hookimpl
    def bestiary_register_fusions(self, register: Any) -> None:
        register(Fusion(name="last_norm", op="t::norm_of_sum"))


def test_a_fusion_without_a_kernel_is_not_applied(
    tiny: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "broken_kernels", sys.modules[__name__])
    host = PluginHost.load(plugins=[_ForeignFusion()])
    report = build(tiny[0] / "ckpt", tmp_path / "engine", host=host, options=BuildOptions(device="cpu"))
    assert report.plan.fusions["last_norm"] == 0
    assert report.plan.fusions["residual_norm"] == 6


def only_one_row(x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor) -> None:
    assert x.shape[0] == 1
    out.copy_(ops.rms_norm.reference(x, weight, eps))


class _OneRow:
    @hookimpl
    def bestiary_register_kernels(self, register: Any) -> None:
        def supports(call: Any) -> str | None:
            return None if call.arguments["x"].shape[0] == 1 else "it runs one row"

        register(Kernel(op="rms_norm", name="one", run="broken_kernels:only_one_row", supports=supports))


def test_a_kernel_runs_only_at_the_sizes_it_supports(tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "broken_kernels", sys.modules[__name__])
    host = PluginHost.load(plugins=[_OneRow()])
    load(tiny[0], host, kernels={"*": "one"}).runner.forward(whole([5, 6, 7], [1]))
    with pytest.raises(ConfigError, match=r"rms_norm=one.*it runs one row"):
        load(tiny[0], host, kernels={"rms_norm": "one"})


def test_an_unknown_op_names_those_near(tiny: tuple[Path, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"no such op; found rmsnorm, expected one of the \d+ ops: .*, … \(did you mean rms_norm"
    ):
        load(tiny[0], PluginHost.load(), kernels={"rmsnorm": "torch"})


def test_tensor_names_of_another_format_are_refused(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    import shutil

    directory = tmp_path / "ckpt"
    shutil.copytree(tiny[0] / "ckpt", directory)
    manifest = directory / "bestiary.json"
    manifest.write_text(manifest.read_text().replace('"model_format": 1', '"model_format": 7'))
    with pytest.raises(DataError, match=r"model_format.*found 7, expected 1.*convert the model again"):
        build(directory, tmp_path / "engine", host=PluginHost.load(), options=BuildOptions(device="cpu"))


def test_random_weights_in_the_shape_of_an_engine_or_checkpoint(tiny: tuple[Path, Any]) -> None:
    for name in ("hf", "ckpt", "engine"):
        with LLM(tiny[0] / name, weights="random", tokenizer=None, device="cpu", kv_cache_memory=2**24) as llm:
            assert llm.engine.vocab_size == SMALL["vocab_size"]


def test_options_that_contradict_a_built_engine_are_refused(tiny: tuple[Path, Any]) -> None:
    with pytest.raises(ConfigError, match=r"dtype: engine engine was built with another value.*'bfloat16'.*'float32'"):
        LLM(tiny[0] / "engine", tokenizer=None, dtype="bfloat16")


def test_random_weights_follow_the_seed(tiny: tuple[Path, Any]) -> None:
    def seeded(seed: int) -> torch.Tensor:
        options: Any = {"weights": "random", "tokenizer": None, "device": "cpu", "kv_cache_memory": 2**24}
        with LLM(tiny[0] / "hf", seed=seed, **options) as llm:
            return logits(llm.engine, whole([5, 6, 7], [1])).clone()

    assert torch.equal(seeded(0), seeded(0))
    assert not torch.equal(seeded(0), seeded(1))
    with pytest.raises(UsageError, match="seed: is not an integer"):
        seeded("x")  # type: ignore[arg-type]


def test_every_tensor_on_the_way_has_a_name() -> None:
    places = trace(_llama()).places
    attention = "layers.1.attention"
    for name in (
        "embed",
        f"{attention}.input",
        f"{attention}.q",
        f"{attention}.rope.1",
        f"{attention}.paged_attention",
    ):
        assert name in places, name
    assert places[f"{attention}.o"] is places[attention], "what a module returns may be what its last part returns"
    assert places["layers.1.mlp_norm.input"] is places["layers.1.add.0"]
    order = list(places)
    assert order.index("embed") < order.index(f"{attention}.rope.0") < order.index("layers.1.mlp") < order.index("head")


def test_an_observer_sees_and_makes_every_call(tiny: tuple[Path, Any]) -> None:
    directory, _ = tiny
    message = whole(list(range(3, 20)), [2, 4])
    engine = load(directory, PluginHost.load())
    plain = engine.runner.forward(message)["logits"].clone()
    seen: list[BoundCall] = []

    def observer(call: BoundCall) -> None:
        seen.append(call)
        if call.run is not None:
            call.run()

    engine.runner.observer = observer
    assert torch.equal(engine.runner.forward(message)["logits"], plain)
    assert [call.instruction for call in seen] == engine.network.program.instructions
    assert all(call.kernel for call in seen if isinstance(call.instruction.target, OpDeclaration))
