"""The layer-by-layer run, against transformers on the same tokens."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bestiary import ops
from bestiary.converters.convert import weight_map
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.parameters import parameters
from bestiary.core.checkpoint.weights import Weights
from bestiary.core.conformance.model_case import Case, Suite
from bestiary.core.errors import DataError, PluginError
from bestiary.core.program.trace import trace
from bestiary.core.quant import layerwise as room
from bestiary.core.quant.inputs import Inputs, Wants
from bestiary.core.quant.layerwise import Layer, layerwise
from bestiary.core.quant.segments import segments
from bestiary.core.quant.sharing import Shared, Source, shared
from bestiary.core.sides.transformers_side import TransformersSide
from bestiary.layers import CausalLM, Embedding, Head, LayerStack, Linear, RMSNorm, Step
from bestiary.testing import ModelConformance

CASES = {
    "biased": "bestiary_llama.conformance",
    "mha": "bestiary_llama.conformance",
    "every_other_sparse": "bestiary_qwen.qwen2_moe.conformance",
    "tied_biased": "bestiary_qwen.qwen3_moe.conformance",
    "window_and_wide_heads": "bestiary_mistral.mixtral.conformance",
}
EVERY = Wants(hessian=lambda parameter: True)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in made:
            found = vars(importlib.import_module(CASES[name])).values()
            kit = next(one for one in found if isinstance(one, type) and issubclass(one, ModelConformance) and one is not ModelConformance)  # fmt: skip
            made[name] = Suite(kit, tmp_path_factory.mktemp(name)).cases[name]
        return made[name]

    return case


def sequences(case: Case) -> list[list[int]]:
    return [case.tokens(length, seed=length) for length in (30, 2, 17)]


def layers_of(case: Case, wants: Wants | None = None, **options: Any) -> Any:
    return layerwise(Checkpoint.open(case.checkpoint), case.suite.host, sequences(case), wants=wants, **options)


def theirs(case: Case) -> dict[str, torch.Tensor]:
    """What transformers makes of all sequences, by our names."""
    assert case.report is not None
    names, expected = weight_map(case.suite.model, "hf", case.config), parameters(case.suite.model, case.config)
    cpu = torch.device("cpu")
    side = TransformersSide.load(case.source, names, expected, dtype=torch.float32, device=cpu)
    seen = [side.run(sequence).tensors for sequence in sequences(case)]
    return {name: torch.cat([one[name] for one in seen]) for name in seen[0] if seen[0][name].dtype.is_floating_point}


def check(seen: Inputs, x: torch.Tensor) -> None:
    """Statistics of all of these rows; the sample has them all."""
    assert seen.rows == len(x)
    if len(x):
        close(seen.mean, x.abs().mean(0))
        close(seen.largest, x.abs().amax(0))
        close(seen.hessian, x.t() @ x / len(x))
        close(seen.sample, x)


def close(ours: torch.Tensor | None, right: torch.Tensor) -> None:
    assert ours is not None
    torch.testing.assert_close(ours, right, rtol=2e-3, atol=2e-4 * max(1.0, float(right.abs().max())))


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_those_of_transformers(cases, name, monkeypatch):
    monkeypatch.setattr(room, "_TOKENS", 33)  # two steps, of two sequences and of one
    case = cases(name)
    right, seen = theirs(case), []
    for layer in layers_of(case, EVERY):
        seen.append(layer.name)
        for parameter, inputs in layer.inputs.items():
            module, _, last = parameter.rpartition(".")
            if module.endswith("experts"):
                check_experts(layer, module, last, inputs, right, case)
                continue
            (only,) = inputs
            check(only, right["norm" if layer.name == "head" else f"{module}.input"])
        for path, found in layer.caches.items():
            close(found.k, right[f"{path}.k"].abs().amax((0, -1)))
            close(found.v, right[f"{path}.v"].abs().amax((0, -1)))
    count = case.config.num_hidden_layers
    assert seen == ["embedding", *(f"layers.{number}" for number in range(count)), "head"]


def check_experts(layer: Layer, module: str, last: str, inputs: Any, right: Any, case: Case) -> None:
    x = right[f"{module}.input"]
    logits = x @ layer.weight(f"{module.removesuffix('experts')}router.weight").t()
    config: Any = case.config
    chosen = logits.topk(config.num_experts_per_tok).indices
    gate, up = layer.weight(f"{module}.gate"), layer.weight(f"{module}.up")
    assert len(inputs) == len(gate)
    for expert, seen in enumerate(inputs):
        some = x[(chosen == expert).any(1)]
        check(seen, some if last != "down" else F.silu(some @ gate[expert].t()) * (some @ up[expert].t()))


def test_every_product_with_weights_is_seen(cases):
    *_, layer, _ = layers_of(cases("every_other_sparse"))
    assert not any(name.endswith("norm.weight") for name in layer.inputs)
    assert {name for name in layer.parameters if "norm" not in name and "bias" not in name} == set(layer.inputs)
    _, _, sparse, *_ = layers_of(cases("every_other_sparse"))
    parts = {"router.weight", "experts.gate", "experts.up", "experts.down", "shared_gate.weight"}
    assert {f"layers.1.moe.{part}" for part in parts} <= set(sparse.inputs)


def test_weights_that_read_one_value_share_what_was_seen(cases):
    layer = list(layers_of(cases("biased")))[1]
    attention = [layer.inputs[f"layers.0.attention.{name}.weight"][0] for name in "qkvo"]
    assert attention[0] is attention[1] is attention[2] is not attention[3]
    assert all(seen.hessian is None for seen in attention), "none was wanted"


def test_a_hessian_is_there_where_a_reader_wants_it(cases):
    layer = list(layers_of(cases("biased"), Wants(hessian=lambda name: name.endswith("attention.v.weight"))))[1]
    wanted = {name for name, (seen,) in layer.inputs.items() if seen.hessian is not None}
    assert wanted == {f"layers.0.attention.{name}.weight" for name in "qkv"}


@pytest.mark.parametrize(("limit", "stride"), [(0, 0), (5, 16), (20, 4), (49, 1)])
def test_a_sample_is_of_rows_at_equal_distances(cases, limit, stride, monkeypatch):
    monkeypatch.setattr(room, "_TOKENS", 31)  # 30 rows and 19, which no stride divides
    name = "layers.2.mlp.down.weight"
    whole, some = (
        next(layer.inputs[name][0] for layer in layers_of(cases("mha"), Wants(sample=most)) if name in layer.inputs)
        for most in (512, limit)
    )
    assert whole.rows == len(whole.sample) == 49
    assert torch.equal(some.sample, whole.sample[::stride] if stride else whole.sample[:0])


def test_one_layers_weights_are_read_at_a_time(cases, monkeypatch):
    read: list[str] = []
    forgotten: list[str] = []
    tensor, forget = Weights.tensor, Weights.forget
    monkeypatch.setattr(Weights, "tensor", lambda self, name: read.append(name) or tensor(self, name))
    monkeypatch.setattr(Weights, "forget", lambda self, name: forgotten.append(name) or forget(self, name))
    before, held = None, None
    for layer in layers_of(cases("window_and_wide_heads")):
        assert sorted(read) == sorted(layer.parameters), "each once, and no others"
        assert before is None or sorted(forgotten) == sorted(before)
        read.clear()
        forgotten.clear()
        assert held is None or held() is None
        before, held = layer.parameters, weakref.ref(layer.weight(layer.parameters[-1]))
        del layer


def test_what_is_put_comes_into_the_next_layers(cases):
    case = cases("biased")
    name, changed = "layers.0.mlp.down.weight", torch.Generator().manual_seed(3)
    module = case.module
    parameter = module.get_parameter("model.layers.0.mlp.down_proj.weight")
    other = torch.randn(parameter.shape, generator=changed) * 0.3
    rows: list[torch.Tensor] = []
    projection = module.get_submodule("model.layers.1.self_attn.q_proj")
    hook = projection.register_forward_pre_hook(lambda _, args: rows.append(args[0][0].detach()))
    kept = parameter.detach().clone()
    try:
        parameter.data.copy_(other)
        for sequence in sequences(case):
            with torch.no_grad():
                module(torch.tensor([sequence]))
    finally:
        parameter.data.copy_(kept)
        hook.remove()
    for layer in layers_of(case, EVERY):
        if name in layer.parameters:
            before = layer.inputs[name][0].mean
            layer.put({name: other})
            assert torch.equal(layer.inputs[name][0].mean, before)
        if layer.name == "layers.1":
            check(layer.inputs["layers.1.attention.q.weight"][0], torch.cat(rows))


def test_a_layer_that_is_settled_writes_what_its_new_weights_make(cases):
    case = cases("biased")
    for layer in layers_of(case):
        if layer.name == "layers.0":
            before = layer.caches
            layer.put({name: layer.weight(name) * 3 for name in layer.parameters if "attention.v." in name})
            layer.settle()
            ((path, found),) = layer.caches.items()
            assert torch.equal(found.k, before[path].k) and torch.allclose(found.v, before[path].v * 3)
            layer.settle()
            assert layer.caches[path] is found, "nothing was put since"


def test_a_tied_weight_that_was_put_stays_for_the_head(cases):
    case, other = cases("window_and_wide_heads"), None
    for layer in layers_of(case):
        if layer.name == "embedding":
            other = layer.weight("embed.weight") * 2
            layer.put({"embed.weight": other})
        elif layer.name == "head":
            assert other is not None and torch.equal(layer.weight("embed.weight"), other)


@pytest.mark.parametrize("name", CASES)
def test_a_scale_that_the_source_takes_up_changes_nothing(cases, name):
    case = cases(name)
    plain = {layer.name: layer.inputs for layer in layers_of(case)}
    generator, scaled = torch.Generator().manual_seed(0), 0
    for layer in layers_of(case):
        for parameter, inputs in layer.inputs.items():
            for seen, right in zip(inputs, plain[layer.name][parameter], strict=True):
                assert seen.rows == right.rows
                close(seen.mean, right.mean)
        new: dict[str, torch.Tensor] = {}

        def now(parameter: str, new=new, layer=layer) -> torch.Tensor:
            return new.get(parameter, layer.weight(parameter))

        for group in layer.shared:
            if group.source is None:
                continue
            readers = [now(reader) for reader in group.readers]
            source = now(group.source.weight)
            s = (
                torch.rand(source.shape if group.source.axis == -1 else source.shape[:-1], generator=generator) * 2
                + 0.3
            )
            new[group.source.weight] = source / (s if group.source.axis == -1 else s.unsqueeze(-1))
            if group.source.bias:
                new[group.source.bias] = now(group.source.bias) / s
            for reader, weight in zip(group.readers, readers, strict=True):
                new[reader] = weight * (s.unsqueeze(-2) if s.dim() == weight.dim() - 1 else s)
            scaled += 1
        layer.put(new)
    assert scaled >= 3 * case.config.num_hidden_layers


def test_what_can_take_up_a_scale(cases):
    def groups(case: str, layer: int) -> list[tuple[set[str], Source | None]]:
        made: Layer = list(layers_of(cases(case)))[layer]
        prefix = f"{made.name}."

        def short(name: str | None) -> str | None:
            return None if name is None else name.removeprefix(prefix)

        def one(group: Shared) -> tuple[set[str], Source | None]:
            source = group.source
            readers = {name.removeprefix(prefix) for name in group.readers}
            return readers, source and Source(str(short(source.weight)), short(source.bias), source.axis)

        return [one(group) for group in made.shared]

    qkv = {f"attention.{name}.weight" for name in "qkv"}
    gate_up = {"mlp.gate.weight", "mlp.up.weight"}
    norms = Source("attention_norm.weight", None, -1), Source("mlp_norm.weight", None, -1)
    assert groups("mha", 1) == [
        (qkv, norms[0]),
        ({"attention.o.weight"}, Source("attention.v.weight", None, -2)),
        (gate_up, norms[1]),
        ({"mlp.down.weight"}, Source("mlp.up.weight", None, -2)),
    ]
    assert groups("biased", 1) == [
        (qkv, norms[0]),
        ({"attention.o.weight"}, None),  # several heads read one value
        (gate_up, norms[1]),
        ({"mlp.down.weight"}, Source("mlp.up.weight", "mlp.up.bias", -2)),
    ]
    assert groups("every_other_sparse", 2)[2:] == [
        (
            {f"moe.{name}" for name in ("router.weight", "experts.gate", "experts.up", "shared.gate.weight", "shared.up.weight", "shared_gate.weight")},
            norms[1],
        ),
        ({"moe.experts.down"}, Source("moe.experts.up", None, -2)),
        ({"moe.shared.down.weight"}, Source("moe.shared.up.weight", None, -2)),
    ]  # fmt: skip
    assert groups("mha", -1) == [({"weight"}, Source("norm.weight", None, -1))]
    assert groups("window_and_wide_heads", -1) == [({"embed.weight"}, None)], "the embedding has the same weight"


class Twice(nn.Module):
    """A layer that reads what its norm and its up make twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm(8, eps=1e-5)
        self.gate, self.up, self.down = (Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        read = self.norm(x)
        up = self.up(read)
        return read + up + self.down(ops.gated_activation(self.gate(read), up, "silu"))


class TwiceLM(CausalLM):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = Embedding(9, 8), RMSNorm(8, eps=1e-5), Head(8, 9)
        self.layers = LayerStack(1, lambda index: Twice())


def test_nothing_takes_up_a_scale_of_what_others_read_too():
    with torch.device("meta"):
        model = TwiceLM()
    program = trace(model)
    _, layer, _ = segments(program, model)
    assert shared(program, layer.instructions) == (
        Shared(("layers.0.up.weight", "layers.0.gate.weight"), None),
        Shared(("layers.0.down.weight",), None),
    )


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "there is no sequence"),
        ([[1], []], "sequence 1: has a length"),
        ([[1] * 1000], "expected 1 to 512"),
        ([[1, 96]], "found 96, expected 0 to 95"),
        ([[1, -1]], "found -1"),
    ],
)
def test_sequences_that_the_model_cannot_run_are_refused(cases, given, problem):
    case = cases("biased")
    with pytest.raises(DataError, match=problem) as refused:
        list(layerwise(Checkpoint.open(case.checkpoint), case.suite.host, given))
    assert refused.value.code == "E-QUANT-SEQUENCE"


def test_tensors_that_do_not_fit_are_not_put(cases):
    layer = next(layers_of(cases("biased")))
    for name, shape in (("embed.weight", (3, 3)), ("nothing.weight", (96, 48))):
        with pytest.raises(PluginError, match=name) as refused:
            layer.put({name: torch.zeros(shape)})
        assert refused.value.code == "E-QUANT-PUT"
