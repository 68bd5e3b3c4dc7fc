"""GGUF files written with llama.cpp's own names and keys from what transformers saves, and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from gguf import GGUFWriter
from safetensors.torch import load_file
from tiny import load, logits, whole

from bestiary import BestiaryError
from bestiary.converters.convert import convert
from bestiary.converters.export import export
from bestiary.converters.gguf import GGUFSource
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary_qwen.qwen2.conformance import Qwen2Conformance
from bestiary_qwen.qwen2_moe.conformance import Qwen2MoeConformance
from bestiary_qwen.qwen3.conformance import Qwen3Conformance
from bestiary_qwen.qwen3_moe.conformance import Qwen3MoeConformance

HOST = PluginHost.load(strict=True)
CASES = [
    (title, name, kit.configs[name])
    for title, kit, names in (
        ("Qwen2", Qwen2Conformance, ("gqa", "mqa_tied", "yarn")),
        ("Qwen2Moe", Qwen2MoeConformance, ("all_sparse", "some_dense")),
        ("Qwen3", Qwen3Conformance, ("wide_heads", "narrow_heads", "biased", "yarn")),
        ("Qwen3Moe", Qwen3MoeConformance, ("renormalized",)),
    )
    for name in names
]


def make(title: str, directory: Path, config: dict[str, Any]) -> Any:
    """A random model of transformers, saved in ``directory``."""
    torch.manual_seed(0)
    made = getattr(transformers, f"{title}ForCausalLM")(getattr(transformers, f"{title}Config")(**config)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(directory)
    return made


def write_gguf(path: Path, source: Path, *, keys: dict[str, Any] | None = None) -> Path:
    """What llama.cpp's converter makes of a directory of transformers; ``keys`` are added, or left out where None."""
    c = json.loads((source / "config.json").read_text())
    name = c["model_type"].replace("_", "")
    writer = GGUFWriter(path, name)
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_parameters"]["rope_theta"])
    if "head_dim" in c:
        writer.add_key_length(c["head_dim"])
        writer.add_value_length(c["head_dim"])
    if c["rope_parameters"]["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(c["rope_parameters"]["factor"])
        writer.add_rope_scaling_orig_ctx_len(c["rope_parameters"]["original_max_position_embeddings"])
    if "moe_intermediate_size" in c:
        writer.add_expert_count(c.get("num_local_experts", c.get("num_experts")))
        writer.add_expert_used_count(c["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in c:
        writer.add_expert_shared_feed_forward_length(c["shared_expert_intermediate_size"])
    for key, value in (keys or {}).items():
        whole_key = f"{name}.{key}"
        writer.kv_data[0].pop(whole_key, None)
        if value is not None:
            writer.add_key_value(whole_key, value, gguf.GGUFValueType.get_type(value))
    _write_tensors(writer, name, c["num_hidden_layers"], load_file(source / "model.safetensors"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tensors(writer: GGUFWriter, name: str, layers: int, tensors: dict[str, torch.Tensor]) -> None:
    architecture = next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    names = gguf.get_tensor_name_map(architecture, layers)
    dense = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, layers)
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for tensor, value in tensors.items():
        before, _, after = tensor.partition(".experts.")
        if after:
            index, _, rest = after.partition(".")
            experts.setdefault(f"{before}.experts.{rest}", {})[int(index)] = value
        else:
            found = names.get_name(tensor, (".weight", ".bias")) or dense.get_name(tensor, (".weight", ".bias"))
            assert found, tensor
            writer.add_tensor(found, (value[0] if "shared_expert_gate" in tensor else value).numpy())
    for tensor, by_index in experts.items():
        found = names.get_name(tensor, (".weight",))
        assert found, tensor
        writer.add_tensor(found, torch.stack([by_index[index] for index in range(len(by_index))]).numpy())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_gguf_gives_the_tensors_and_logits_of_its_model(
    case: tuple[str, str, dict[str, Any]], tmp_path: Path
) -> None:
    title, _, config = case
    made = make(title, tmp_path / "hf", config)
    convert(write_gguf(tmp_path / "m.gguf", tmp_path / "hf"), tmp_path / "ckpt", host=HOST)
    export(tmp_path / "ckpt", tmp_path / "back", host=HOST)
    theirs, ours = load_file(tmp_path / "hf" / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert set(theirs) == set(ours) and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    small = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64)
    build(tmp_path / "ckpt", tmp_path / "engine", host=HOST, options=small)
    tokens = torch.randint(3, 96, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        expected = made(torch.tensor([tokens])).logits[0]
    found = logits(load(tmp_path, HOST), whole(tokens, [5, 2]))
    assert (found - expected).abs().max() < 1e-4


def read_config(path: Path) -> dict[str, Any]:
    source = GGUFSource(path)
    return source.config(source.model(HOST))


@pytest.mark.parametrize(("title", "kit"), [("Qwen2Moe", Qwen2MoeConformance), ("Qwen3Moe", Qwen3MoeConformance)])
def test_what_a_file_with_experts_leaves_out(title: str, kit: Any, tmp_path: Path) -> None:
    """As llama.cpp reads it: lengths from feed_forward_length, weights divided by their sum in Qwen3 only."""
    make(title, tmp_path / "hf", kit.configs["all_sparse"])
    left_out = dict.fromkeys(("expert_feed_forward_length", "expert_shared_feed_forward_length"))
    config = read_config(write_gguf(tmp_path / "m.gguf", tmp_path / "hf", keys=left_out))
    assert config["moe_intermediate_size"] == 80 // 2
    assert config.get("shared_expert_intermediate_size", 80) == 80
    assert config["norm_topk_prob"] == (title == "Qwen3Moe")
    assert config["mlp_only_layers"] == []
    said = write_gguf(tmp_path / "n.gguf", tmp_path / "hf", keys={"expert_weights_norm": title == "Qwen2Moe"})
    assert read_config(said)["norm_topk_prob"] == (title == "Qwen2Moe")
    for key, value in {"expert_used_count": 0, "expert_count": None, "expert_gating_func": 2}.items():
        wrong = write_gguf(tmp_path / "w.gguf", tmp_path / "hf", keys={key: value})
        with pytest.raises(BestiaryError, match=f"moe.{key}: "):
            read_config(wrong)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hf")
    make("Qwen3", directory, Qwen3Conformance.configs["wide_heads"])
    return directory


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"rope_theta": 10000.0, "head_dim": 16}),
        ({"rope.scaling.type": "none"}, {"rope_theta": 10000.0}),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_beta_fast": 16.0},
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0}},
        ),
        ({"attention.head_count_kv": None}, {"num_key_value_heads": 4}),
        ({"attention.key_length": None, "attention.value_length": None}, {"head_dim": 12}),
    ],
)
def test_what_the_keys_mean(keys: dict[str, Any], expected: dict[str, Any], qwen3: Path, tmp_path: Path) -> None:
    config = read_config(write_gguf(tmp_path / "m.gguf", qwen3, keys=keys))
    assert {key: config[key] for key in expected} == expected
    assert ("rope_scaling" in config) == ("rope_scaling" in expected)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention.sliding_window": 64}, "qwen3.attention.sliding_window: changes the mathematics.*found 64"),
        ({"attention.causal": False}, "qwen3.attention.causal: changes"),
        ({"pooling_type": 3}, "qwen3.pooling_type: changes"),
        ({"block_count": None}, "qwen3.block_count: is missing"),
        ({"block_count": 4}, "tensor blk.3.attn_norm.weight: is missing"),
        ({"rope.dimension_count": 8}, "qwen3.rope.dimension_count: differs from the size of a head"),
        ({"attention.value_length": 8}, "qwen3.attention.value_length: differs"),
        ({"attention.head_count": 0}, "qwen3.attention.head_count: is not one number above zero"),
        ({"attention.key_length": 0}, "qwen3.attention.key_length: is not one number"),
        ({"rope.scaling.type": "longrope"}, "qwen3.rope.scaling.type: is not implemented"),
        ({"rope.scaling.type": "linear"}, "qwen3.rope.scaling.factor: is missing"),
        ({"rope.scaling.type": "yarn"}, "rope_scaling.factor"),
        ({"rope.scaling.yarn_attn_factor": 2.0}, "yarn_attn_factor: changes"),
    ],
)
def test_a_gguf_that_is_no_qwen_is_refused(keys: dict[str, Any], message: str, qwen3: Path, tmp_path: Path) -> None:
    with pytest.raises(BestiaryError, match=message):
        convert(write_gguf(tmp_path / "m.gguf", qwen3, keys=keys), tmp_path / "ckpt", host=HOST)
    assert not (tmp_path / "ckpt").exists()
