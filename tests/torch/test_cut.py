"""Pipeline stages: one after the other they are the whole program, and what can't be cut is refused with the arithmetic."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import queue_kernels
import torch
from tiny import SMALL, make_engine, whole
from torch import Tensor, nn

from bestiary import ConfigError, Model, hookimpl
from bestiary.core.engine.build import build
from bestiary.core.engine.cache_plan import plan_cache
from bestiary.core.engine.engine import plan_file
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.network import make_network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.ops.collective import UNDIVIDED, Place, Ranks
from bestiary.core.plugins import PluginHost
from bestiary.core.program.passes.cut import cut, divide
from bestiary.core.program.passes.shard import shard
from bestiary.core.program.passes.taps import insert_taps
from bestiary.core.program.program import Program
from bestiary.core.program.shapes import Geometry, infer
from bestiary.core.program.trace import trace
from bestiary.layers import Attention, CausalLM, Embedding, Head, LayerStack, RMSNorm, Step
from bestiary.spec import ModelConfig
from bestiary_llama.config import LlamaConfig
from bestiary_llama.model import Llama

GEOMETRY = Geometry(torch.float32, torch.float32, 16, 8)


def _llama(**changes: object) -> nn.Module:
    with torch.device("meta"):
        return Llama(LlamaConfig.parse({**SMALL, "architectures": ["LlamaForCausalLM"], **changes}))


def _stage(model: nn.Module, stage: int, stages: int, tensor: Ranks = UNDIVIDED.tensor) -> Program:
    program = trace(model)
    shard(program, model, tensor)
    cut(program, model, Ranks(stage, stages), GEOMETRY)
    return program


def _names(program: Program) -> list[str]:
    return [instruction.target.name for instruction in program.instructions]


def _layers(program: Program) -> set[str]:
    return {part.parameter.split(".")[1] for w in program.weights() for part in w.parts if "layers" in part.parameter}


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        pytest.param({}, 2, id="untied-odd"),
        pytest.param({"tie_word_embeddings": True, "num_hidden_layers": 5}, 3, id="tied-odd"),
        pytest.param({"num_hidden_layers": 2, "attention_bias": True}, 2, id="a-layer-each"),
    ],
)
def test_the_stages_in_turn_equal_the_whole_program(tmp_path: Path, changes: dict[str, Any], stages: int) -> None:
    host = PluginHost.load(plugins=[queue_kernels])
    # Named kernels: two builds that measure may choose differently, and round differently then.
    common: dict[str, Any] = {"device": "cpu", "max_num_tokens": 64}
    make_engine(tmp_path, host, BuildOptions(**common, kernels={"*": "torch"}), **changes)
    kernels = {"*": "torch", **queue_kernels.CHOSEN}
    options = BuildOptions(**common, pipeline_parallel=stages, kernels=kernels)
    build(tmp_path / "ckpt", tmp_path / "divided", host=host, options=options)
    queue: deque[Tensor] = deque()
    engines = [
        load_engine(tmp_path / "divided", host=host, num_blocks=8, place=Place(stage=Ranks(stage, stages, queue)))
        for stage in range(stages)
    ]
    undivided = load_engine(tmp_path / "engine", host=host, num_blocks=8)
    for tokens in (list(range(3, 33)), list(range(3, 34))):
        message = whole(tokens, [5, 2])
        results = [engine.runner.forward(message) for engine in engines]
        assert [list(result) for result in results] == [[]] * (stages - 1) + [["logits"]]
        assert torch.equal(results[-1]["logits"], undivided.runner.forward(message)["logits"])
        assert not queue
    plan = engines[0].plan
    assert plan_file(tmp_path / "divided", plan.device, options).name == f"{plan.device}-tp1pp{stages}.json"
    calls = {signature.partition("(")[0] for signature in plan.choices}
    assert calls >= {"embedding", "send", "receive", "logits"}, "one plan for all stages"


def test_a_stage_has_its_layers_weights_and_caches_only() -> None:
    model = _llama()
    first, last = _stage(model, 0, 2), _stage(model, 1, 2)
    assert (_layers(first), _layers(last)) == ({"0", "1"}, {"2"})
    assert list(first.caches) == ["layers.0.attention.cache", "layers.1.attention.cache"]
    assert list(last.caches) == ["layers.2.attention.cache"]
    assert {name for name in last.inputs if name.startswith("k.")} == {"k.layers.2.attention.cache"}
    parameters = [
        {part.parameter for weight in program.weights() for part in weight.parts} for program in (first, last)
    ]
    assert "embed.weight" in parameters[0] - parameters[1]
    assert {"norm.weight", "head.weight"} <= parameters[1] - parameters[0]
    # One value crosses, and the rotary table is made in both from the positions.
    assert _names(first).count("send") == _names(last).count("receive") == 1
    assert _names(first).count("rotary_table") == _names(last).count("rotary_table") == 1
    assert (list(first.outputs), list(last.outputs)) == ([], ["logits"])
    shapes = infer(last, GEOMETRY)
    assert str(shapes[last.outputs["logits"]]) == "float32[R, 96]"


def test_a_tied_head_is_on_both_ends() -> None:
    model = _llama(tie_word_embeddings=True)
    ends = [{part.parameter for w in _stage(model, n, 3).weights() for part in w.parts} for n in range(3)]
    assert ["embed.weight" in names for names in ends] == [True, False, True]


def test_a_stage_of_a_tensor_parallel_rank() -> None:
    model = _llama(num_hidden_layers=5)
    for tensor in (Ranks(0, 2), Ranks(1, 2)):
        program = _stage(model, 1, 2, tensor)
        (received,) = (i for i in program.instructions if i.target.name == "receive")
        shapes = infer(program, GEOMETRY)
        assert str(shapes[received.results[0]]) == "float32[T, 48]"
        assert str(shapes[program.outputs["logits"]]) == "float32[R, 96]"
        assert (_names(program).count("all_reduce"), _names(program).count("all_gather")) == (2 * 2, 1)
        assert {spec.kv_heads for spec in program.caches.values()} == {1}
        parts = {part.parameter: (part.start, part.stop) for w in program.weights() for part in w.parts}
        assert parts["layers.4.mlp.down.weight"] == (tensor.rank * 40, tensor.rank * 40 + 40)


def test_taps_stay_with_the_stage_that_makes_them() -> None:
    model = _llama()
    outputs = []
    for stage in range(2):
        program = trace(model)
        insert_taps(program, ["layers.1", "layers.2"])
        cut(program, model, Ranks(stage, 2), GEOMETRY)
        outputs.append(list(program.outputs))
    assert outputs == [["layers.1"], ["logits", "layers.2"]]


class _Layer(nn.Module):
    def __init__(self, size: int, window: int | None) -> None:
        super().__init__()
        self.norm = RMSNorm(size, eps=1e-5)
        self.attention = Attention(size, heads=4, kv_heads=2, head_dim=4, rope=None, window=window)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return x + self.attention(self.norm(x), step)


class _Windowed(CausalLM):
    def __init__(self, windows: list[int | None], *, again: bool = False) -> None:
        super().__init__()
        self.embed = Embedding(32, 16)
        self.layers = LayerStack(len(windows), lambda index: _Layer(16, windows[index]))
        self.norm = RMSNorm(16, eps=1e-5)
        self.head = Head(16, 32)
        self.again = again

    def forward(self, step: Step) -> Tensor:
        x = first = self.embed(step.tokens)
        for layer in self.layers:
            x = layer(x, step)
        if self.again:
            x = self.layers[0](x, step)
        return self.head(self.norm(x + first))


def test_groups_keep_the_whole_models_numbers_and_far_readers_are_relayed_to() -> None:
    with torch.device("meta"):
        model = _Windowed([None, 20, 20, None])
    stages = [_stage(model, n, 3) for n in range(3)]
    assert [[spec.window for spec in program.groups] for program in stages] == [[None, 20]] * 3
    assert [sorted(program.group_of[path] for path in program.caches) for program in stages] == [[0], [1, 1], [0]]
    writes = [i for i in stages[1].instructions if i.target.name == "kv_write"]
    assert {i.args[4].name for i in writes} == {"slots.1"}
    # The embedding is read behind the last border: the stage between receives it and sends it on.
    assert [(_names(p).count("receive"), _names(p).count("send")) for p in stages] == [(0, 2), (2, 2), (2, 0)]


class _Elsewhere(Place):
    """The other ranks could hold a thousand blocks."""

    def least(self, values: Sequence[int], device: torch.device) -> list[int]:
        return [min(value, 1000) for value in values]


def _windowed(c: ModelConfig) -> CausalLM:
    return _Windowed([None, 20, 20, None])


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    names = {"architectures": ("W",), "config": "bestiary.spec:ModelConfig", "model": "windowed_model:_windowed"}
    register(Model(name="windowed", weights={}, **names))


def test_a_stage_without_layers_of_a_group_does_not_limit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "windowed_model", sys.modules[__name__])
    config = ModelConfig.parse({**SMALL, "vocab_size": 32, "hidden_size": 16, "architectures": ["W"]})
    options = BuildOptions(device="cpu", max_num_tokens=64, pipeline_parallel=3, max_batch_size=2)
    groups = []
    for stage in range(3):
        place = _Elsewhere(stage=Ranks(stage, 3))
        host = PluginHost.load(plugins=[sys.modules[__name__]])
        network = make_network(
            host.model("windowed"), config, options, checkpoint_dtype="float32", host=host, place=place
        )
        # A block of one layer takes 16 tokens × 2 heads × (4 + 4) × 4 bytes.
        groups.append(plan_cache(network, options, 40 * 1024, None, place))
    assert [[group.window for group in one] for one in groups] == [[None, 20]] * 3
    # A longest sequence takes 32 blocks, or 7 of the windowed layers; two of them may run. One block is scrap.
    assert [[group.num_blocks for group in one] for one in groups] == [[39, 14], [64, 14], [39, 14]]


def test_a_cache_of_two_stages_is_refused() -> None:
    with torch.device("meta"):
        model = _Windowed([None, None], again=True)
    with pytest.raises(ConfigError, match=r"layers\.0\.attention\.cache.*found stages 0, 1"):
        _stage(model, 0, 2)


def test_fewer_layers_than_stages_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError, match="found 4 stages and 3 layers, expected at most 3 stages"):
        _stage(_llama(), 3, 4)


@pytest.mark.parametrize(
    ("weights", "stages", "starts"),
    [
        ([1] * 30, 2, [0, 15, 30]),
        ([1] * 7, 2, [0, 4, 7]),
        ([1] * 9, 4, [0, 2, 5, 7, 9]),
        ([1] * 4, 4, [0, 1, 2, 3, 4]),
        ([9, 1, 1, 1], 2, [0, 1, 4]),
        ([1, 1, 1, 9], 3, [0, 2, 3, 4]),
    ],
)
def test_layers_are_divided_by_their_weights(weights: list[int], stages: int, starts: list[int]) -> None:
    assert divide(weights, stages) == starts
