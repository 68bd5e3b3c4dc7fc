"""Both sides on the same tokens: the same names, the same tensors, others in their place, noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import planted
import pytest
import torch

from bestiary import LLM, SamplingParams
from bestiary.converters.convert import convert, weight_map
from bestiary.core.checkpoint.parameters import parameters, parse_config
from bestiary.core.engine.build import unmeasured
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.errors import PluginError, RequestError
from bestiary.core.ops.activation import gated_activation
from bestiary.core.ops.norm import rms_norm
from bestiary.core.plugins import PluginHost
from bestiary.core.program.bound import BoundCall
from bestiary.core.program.call_error import CallError
from bestiary.core.program.program import Instruction, Value
from bestiary.core.sides.engine_side import EngineSide
from bestiary.core.sides.guard import Change, Guard
from bestiary.core.sides.names import _left_over, pairs
from bestiary.core.sides.side import Instead, Noise, common_name
from bestiary.core.sides.transformers_side import TransformersSide

TOKENS = [5, 9, 31, 2, 44, 17, 3, 60, 8, 21]
CHUNKS = (4, 3, 1, 1, 1)
REFERENCE = {"kernels": {"*": "reference"}, "without_fusions": ("*",)}


class Both(NamedTuple):
    theirs: TransformersSide
    engine: Path
    host: PluginHost

    def ours(self, **options) -> EngineSide:
        return EngineSide(load_engine(self.engine, host=self.host, num_blocks=4, **options), "ours")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("sides")
    host = PluginHost.load(plugins=["planted"])
    source = planted.write("windowed", folder)
    convert(source, folder / "ckpt", host=host)
    options = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64)
    unmeasured(folder / "ckpt", folder / "engine", host=host, options=options)
    model = host.model("planted_windowed")
    config = parse_config(model, {**planted_config(source), "model_type": "mistral"})
    theirs = TransformersSide.load(
        source,
        weight_map(model, "hf", config),
        parameters(model, config),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return Both(theirs, folder / "engine", host)


def planted_config(source: Path):
    import json

    return json.loads((source / "config.json").read_text())


def test_every_kind_of_tensor_has_one_name_on_both_sides(both):
    theirs, ours = both.theirs.run(TOKENS), both.ours(**REFERENCE).run(TOKENS, CHUNKS)
    shared = theirs.tensors.keys() & ours.tensors.keys()
    layer = "layers.1"
    wanted = {
        "embed", "norm", "head", "logits", layer, f"{layer}.attention_norm", f"{layer}.mlp_norm",
        f"{layer}.mlp_norm.input", f"{layer}.attention", f"{layer}.mlp", f"{layer}.mlp.down.input",
        *(f"{layer}.attention.{one}" for one in ("q", "k", "v", "o", "o.input", "rope.0", "rope.1", "cache.k", "cache.v")),
    }  # fmt: skip
    assert wanted <= shared
    for name in shared:
        found, right = ours.tensors[name], theirs.tensors[name]
        assert len(found) == len(right) == len(TOKENS)
        assert torch.allclose(found, right.reshape(found.shape), atol=2e-5), name


def test_steps_of_any_size_have_the_same_tensors(both):
    ours = both.ours()
    whole, chunked = ours.run(TOKENS), ours.run(TOKENS, CHUNKS)
    assert whole.tensors.keys() == chunked.tensors.keys()
    assert all(torch.allclose(whole.tensors[name], chunked.tensors[name], atol=1e-5) for name in whole.tensors)
    assert whole.decoded == {} and chunked.decoded.keys() == chunked.made.keys()
    assert torch.equal(ours.logits(TOKENS), whole.tensors["logits"])


def test_with_right_tensors_in_place_each_shows_its_own_error_only(both):
    right = both.theirs.run(TOKENS).tensors
    wrong = {**right, "layers.0.attention.v": right["layers.0.attention.v"] * 2}
    own = both.ours().run(TOKENS, CHUNKS, Instead(right)).tensors
    assert all(torch.allclose(own[n], right[n].reshape(own[n].shape), atol=5e-6) for n in own if n in right)
    after = both.ours().run(TOKENS, CHUNKS, Instead(wrong)).tensors
    # What is put in place of the values reaches the cache, and no further: that is put in place, too.
    apart = [name for name in own if not torch.equal(own[name], after[name])]
    assert apart == ["layers.0.attention.cache.v"]


@pytest.mark.parametrize("guard", [True, False])
def test_what_a_kernel_spoils_is_put_back_where_that_is_looked_at(both, guard):
    right = both.ours().run(TOKENS, CHUNKS)
    found = both.ours(kernels={"rms_norm": "wrong_clobber"}).run(TOKENS, CHUNKS, guard=guard)
    same = torch.equal(found.tensors["logits"], right.tensors["logits"])
    assert same == guard and bool(found.spoiled) == guard
    if guard:
        first = found.spoiled[0]
        assert (first.by.op, first.by.kernel, first.by.scope) == (
            "rms_norm",
            "wrong_clobber",
            "layers.0.attention_norm",
        )
        assert (first.parameter, first.cached, first.changed, first.total) == ("x", False, 4 * 32, 4 * 32)
        assert [one.decode for one in found.spoiled] == [False, False, True, True, True]
    assert both.ours().run(TOKENS, CHUNKS, guard=True).spoiled == []


def test_a_guard_sees_every_bit_and_views(both):
    instruction = Instruction(rms_norm, (Value("x"), Value("weight"), 1e-5), (), "")
    x = torch.tensor([[0.0, math.nan]]).expand(3, 2)  # one row, shown three times
    weight = torch.ones(4, 2)[:, ::2].squeeze(-1)
    call = BoundCall(instruction, "some", (x, weight, 1e-5), (), None)
    assert list(Guard(call, slice(0, 1)).undo()) == []
    guard = Guard(call, slice(0, 1))
    x[0, 0], weight[3] = -0.0, 5.0
    assert list(guard.undo()) == [Change("x", False, 1, 2), Change("weight", False, 1, 4)]
    assert not x.signbit()[0, 0] and weight.tolist() == [1, 1, 1, 1]


def test_who_made_a_tensor(both):
    seen = both.ours().run(TOKENS, CHUNKS)
    made = seen.made["layers.1.attention.k"]  # a slice of one product
    assert (made.op, made.kernel, made.arguments) == ("linear", "torch", {"bias": None})
    attention = seen.made["layers.1.attention.o.input"]
    assert (attention.op, attention.scope) == ("paged_attention", "layers.1.attention")
    assert attention.arguments["window"] == 6 and attention.call.startswith("paged_attention(float32[T, 2, 16]")
    assert seen.made["layers.1.attention.cache.k"].op == "rope_kv_write"


def test_calls_can_be_made_again(both):
    side, right = both.ours(), both.theirs.run(TOKENS)
    calls = side.capture("layers.0.mlp.down.input", TOKENS, CHUNKS, Instead(right.tensors))
    assert [call.rows for call in calls] == [slice(0, 4), slice(4, 7), slice(7, 8), slice(8, 9), slice(9, 10)]
    assert all(call.op is gated_activation for call in calls)
    made = torch.cat([call.select((call.op.reference(*call.args),)) for call in calls])
    assert torch.allclose(made, right.tensors["layers.0.mlp.down.input"], atol=1e-5)
    # Of a merged product the part that was asked for.
    (call,) = side.capture("layers.0.attention.v", TOKENS, (), Instead(right.tensors))
    assert torch.allclose(
        call.select((call.op.reference(*call.args),)), right.tensors["layers.0.attention.v"], atol=1e-5
    )


def test_calls_between_a_tensor_and_known_ones(both):
    side = both.ours()
    known = {name: torch.empty(0) for name in ("layers.0.attention.q", "layers.0.attention.k", "layers.0.attention.v")}
    found = [call.target.name for call in side.between("layers.0.attention.o.input", known)]
    assert found == ["paged_attention", "rope_kv_write", "rotary_table"]
    written = side.between("layers.0.attention.cache.k", known)
    assert next(call.target.name for call in written) == "rope_kv_write"


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_noise_is_as_large_as_said_and_falls_as_the_seed_says(both, name):
    side = both.theirs if name == "theirs" else both.ours()
    right = side.run(TOKENS)
    noisy, again, other = (
        side.run(TOKENS, (), Instead(right.tensors, Noise(1e-2, seed))).tensors["layers.1.mlp_norm"]
        for seed in (0, 0, 1)
    )
    clean = right.tensors["layers.1.mlp_norm"]
    apart = float((noisy - clean).norm() / clean.norm())
    assert 1e-3 < apart < 5e-2
    assert torch.equal(noisy, again) and not torch.equal(noisy, other)
    carried = side.run(TOKENS, (), Instead(noise=Noise(1e-2))).tensors["logits"]
    assert not torch.equal(carried, right.tensors["logits"])
    assert torch.equal(side.run(TOKENS).tensors["logits"], right.tensors["logits"])  # nothing is left behind


def test_a_common_name_is_rather_of_the_outermost_module_that_returns_it():
    known = ("layers.0", "layers.0.mlp", "layers.0.mlp.down", "layers.1.attention_norm.input")
    assert common_name(("layers.0.mlp.down.linear", "layers.0.mlp.down", "layers.0.mlp"), known) == "layers.0.mlp"
    assert common_name(("layers.0.add", "layers.1.attention_norm.input", "layers.0"), known) == "layers.0"
    assert common_name(("layers.1.attention_norm.input",), known) == "layers.1.attention_norm.input"
    assert common_name(("embed",), known) is None


def test_modules_are_paired_by_their_weights():
    class Sizes:
        pass

    host = PluginHost.load(plugins=["planted"])
    model = host.model("planted_exchanged")
    shapes = {f"layers.0.attention.{one}.weight": (4, 4) for one in "qkvo"}
    modules = ["model", "model.layers.0.self_attn", *(f"model.layers.0.self_attn.{one}_proj" for one in "qkvo")]
    tensors = {f"model.layers.0.self_attn.{one}_proj.weight": (4, 4) for one in "qkvo"}
    found = pairs(weight_map(model, "hf", Sizes()), shapes, modules, tensors)  # type: ignore[arg-type]
    assert found["layers.0.attention.q"] == "model.layers.0.self_attn.k_proj"
    assert found["layers.0.attention"] == "model.layers.0.self_attn"


def test_modules_that_files_name_otherwise_are_paired_by_shapes():
    from bestiary.converters import WeightMap

    weights = WeightMap({"moe.router": "file.gate", "moe.experts.up": "file.experts.w.weight", "norm": "model.norm"})
    shapes = {"moe.router.weight": (4, 8), "moe.experts.up": (4, 6, 8), "norm.weight": (8,)}
    tensors = {"model.norm.weight": (8,), "model.mlp.gate.weight": (4, 8), "model.mlp.experts.gate_up_proj": (4, 12, 8)}
    modules = ["model", "model.norm", "model.mlp", "model.mlp.gate", "model.mlp.experts"]
    left = _left_over({"moe": "model.mlp"}, shapes, tensors)
    assert left == {"moe.router": "model.mlp.gate", "moe.experts": "model.mlp.experts"}
    assert "moe" not in pairs(weights, shapes, modules, tensors)  # nothing above says what it is


def test_a_sequence_that_is_too_long_is_refused(both):
    with pytest.raises(RequestError, match="E-SIDE-LENGTH"):
        both.ours().run(TOKENS * 20, (64, 64, 64, 8))


def test_what_transformers_does_not_load_is_said(both, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(PluginError, match="does not load this model"):
        TransformersSide.load(tmp_path, None, None, dtype=torch.float32, device=torch.device("cpu"))  # type: ignore[arg-type]


def test_both_sides_know_how_many_tokens_have_a_logit(both):
    for side in (both.ours(), both.theirs):
        assert side.vocab_size == side.logits(TOKENS).shape[-1] == 64


def test_a_call_that_raises_is_named(both):
    """Watched or not; the steps before it ran, and the engine runs again."""
    side = both.ours(kernels={"linear": "wrong_many_rows"})
    for run in (lambda: side.run(TOKENS, CHUNKS), lambda: side.logits(TOKENS[:1])):
        with pytest.raises(CallError) as caught:
            run()
        error = caught.value
        assert (error.code, error.subject, error.kernel) == (
            "E-KERNEL-FAILED", "kernel linear=wrong_many_rows", "wrong_many_rows",
        )  # fmt: skip
        assert error.problem == (
            "raised ValueError: one row is unsupported, in layers.0.attention.q, in a step of 1 token"
        )
        assert error.tokens == 1 and isinstance(error.__cause__, ValueError)
        assert error.instruction.scope == "layers.0.attention.q"
    assert len(side.logits(TOKENS)) == len(TOKENS)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError("full"), RequestError("E-X", "x", "y")])
def test_what_says_itself_what_it_is_stays_so(both, monkeypatch, error):
    def full(*args, **out):
        raise error

    side = both.ours(kernels={"*": "reference"})
    monkeypatch.setattr(rms_norm, "reference", full)
    with pytest.raises(type(error)) as caught:
        side.logits(TOKENS)
    assert caught.value is error


def test_a_request_says_which_kernel_raised(both):
    with LLM(both.engine, plugins=["planted"], tokenizer=None, kernels={"rms_norm": "wrong_raising"}) as llm:
        (out,) = llm.generate([{"prompt_token_ids": TOKENS}], SamplingParams(max_tokens=2))
    assert out.outputs[0].finish_reason == "error"
    assert out.outputs[0].stop_reason == (
        "kernel rms_norm=wrong_raising: raised RuntimeError: no such device thing, in layers.0.attention_norm, in a step of "
        "10 tokens (bestiary kernels lists what there is; name another with --kernel OP=NAME, or none) [E-KERNEL-FAILED]"
    )
