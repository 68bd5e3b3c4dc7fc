"""GGUFs as llama.cpp writes them: of Mistral, and of Mixtral with stacked experts or one tensor for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from bestiary import BestiaryError, PluginError
from bestiary.converters.convert import convert, foresee
from bestiary.converters.export import export
from bestiary.core.plugins import PluginHost

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "sliding_window": None,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
MATRICES = {"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load()


def saved(directory: Path, *, experts: int = 0, **said: Any) -> dict[str, torch.Tensor]:
    """A random model's tensors as transformers saves them."""
    torch.manual_seed(0)
    if experts:
        model: Any = MixtralForCausalLM(MixtralConfig(**{**SIZES, **said}, num_local_experts=experts))
    else:
        model = MistralForCausalLM(MistralConfig(**{**SIZES, **said}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


def llama_cpp_order(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection as llama.cpp's converter orders them: pairs (i, i + head/2) made neighbours."""
    head = tensor.shape[0] // heads
    rows = [h * head + half * head // 2 + i for h in range(heads) for i in range(head // 2) for half in (0, 1)]
    return tensor[torch.tensor(rows)]


def write_gguf(
    path: Path,
    tensors: dict[str, torch.Tensor],
    architecture: str,
    *,
    stacked: bool = True,
    keys: dict[str, Any] | None = None,
) -> Path:
    writer = GGUFWriter(path, architecture)
    values: dict[str, Any] = {
        "embedding_length": 32,
        "feed_forward_length": 40,
        "block_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "context_length": 128,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 1e6,
        "rope.dimension_count": 8,
        **(keys or {}),
    }
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(f"{architecture}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif value is not None:
            writer.add_string(f"{architecture}.{key}", value)
    for name, tensor in _renamed(tensors, stacked).items():
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _renamed(tensors: dict[str, torch.Tensor], stacked: bool) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        _, _, layer, *_ = [*name.split("."), ""]
        if ".experts." in name:
            expert, matrix = name.split(".")[-3:-1]
            found[f"blk.{layer}.{MATRICES[matrix]}.{expert}.weight"] = tensor
            continue
        if "q_proj" in name or "k_proj" in name:
            tensor = llama_cpp_order(tensor, 4 if "q_proj" in name else 2)
        (ours,) = (ours for theirs, ours in NAMES.items() if theirs in name)
        found[f"{ours}.weight" if "layers" not in name else f"blk.{layer}.{ours}.weight"] = tensor
    if stacked:
        for layer in range(2):
            for matrix in MATRICES.values():
                one_by_one = [
                    name for name in found if name.startswith(f"blk.{layer}.{matrix}.") and name.count(".") == 4
                ]
                if one_by_one:
                    experts = [found.pop(name) for name in one_by_one]
                    found[f"blk.{layer}.{matrix}_exps.weight"] = torch.stack(experts)
    return found


EXPERTS = {"expert_count": 3, "expert_used_count": 2}


@pytest.mark.parametrize(
    ("architecture", "experts", "stacked", "model"),
    [("mistral3", 0, True, "mistral"), ("llama", 3, True, "mixtral"), ("llama", 3, False, "mixtral")],
)
def test_a_gguf_gives_the_tensors_of_the_model_it_was_made_from(
    architecture: str, experts: int, stacked: bool, model: str, host: PluginHost, tmp_path: Path
) -> None:
    theirs = saved(tmp_path / "hf", experts=experts)
    path = write_gguf(tmp_path / "m.gguf", theirs, architecture, stacked=stacked, keys=EXPERTS if experts else {})
    report = convert(path, tmp_path / "ckpt", host=host)
    assert report.model == model
    export(tmp_path / "ckpt", tmp_path / "back", host=host)
    ours = load_file(tmp_path / "back" / "model.safetensors")
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    read = (MixtralConfig if experts else MistralConfig).from_pretrained(tmp_path / "back")
    assert (read.sliding_window, read.head_dim, read.rope_parameters["rope_theta"]) == (None, 8, 1e6)
    if experts:
        assert (read.num_local_experts, read.num_experts_per_tok) == (3, 2)


def test_a_window_in_the_metadata_is_kept(host: PluginHost, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", saved(tmp_path / "hf"), "mistral3", keys={"attention.sliding_window": 16})
    _, config, *_ = foresee(path, host)
    assert getattr(config, "sliding_window", None) == 16


def test_a_llama_gguf_without_experts_is_none_of_this_family(host: PluginHost, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", saved(tmp_path / "hf"), "llama", keys={"expert_count": 0})
    others = [model.name for model in host.models() if "llama" in model.gguf]
    if others:
        assert [foresee(path, host)[0].name] == others
    else:
        with pytest.raises(PluginError, match="may be called bestiary-llama"):
            foresee(path, host)


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("mistral3", {"attention.temperature_scale": 0.1}, "mistral3.attention.temperature_scale: changes"),
        ("mistral3", {"expert_count": 4}, "mistral3.expert_count: changes"),
        ("mistral3", {"attention.causal": False}, "mistral3.attention.causal: changes"),
        ("mistral3", {"rope.scaling.type": "yarn"}, "mistral3.rope.scaling.type: changes"),
        ("mistral3", {"block_count": None}, "mistral3.block_count: is missing"),
        ("mistral3", {"rope.dimension_count": 4, "attention.key_length": 8}, "rope.dimension_count: differs"),
        ("llama", {"expert_count": 3}, "llama.expert_used_count: is missing"),
    ],
)
def test_a_gguf_that_is_not_this_family_is_refused(
    architecture: str, keys: dict[str, Any], message: str, host: PluginHost, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", saved(tmp_path / "hf"), architecture, keys=keys)
    with pytest.raises(BestiaryError, match=message):
        convert(path, tmp_path / "ckpt", host=host)
    assert not (tmp_path / "ckpt").exists()
