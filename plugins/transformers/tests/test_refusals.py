"""What the fallback can't run, or can't do, ends with a sentence that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from unported_models import CONFIGS, SMALL

from bestiary import LLM, BestiaryError, ConfigError, PluginError
from bestiary.core.plugins import PluginHost
from bestiary_transformers.config import TransformersConfig, why_not
from bestiary_transformers.module import make_module

PLUGIN = "bestiary_transformers.plugin"


@pytest.mark.parametrize(
    ("architecture", "model_type", "said"),
    [
        ("GPT2LMHeadModel", "gpt2", None),
        ("GPT2LMHeadModel", "llama", "has no model of this name and model_type"),
        ("GPT2ForTokenClassification", "gpt2", "knows it, but not as a causal language model"),
        ("T5ForConditionalGeneration", "t5", "but not as a causal language model, and bestiary runs causal"),
        ("T5ForCausalLM", "t5", "has no model of this name"),
        ("GPT2LMHeadModel", None, "has no model of this name"),
        ("BertLMHeadModel", "bert", "it is an encoder or has one"),
    ],
)
def test_which_architectures_it_stands_in_for(architecture: str, model_type: str | None, said: str | None) -> None:
    reason = why_not(architecture, model_type)
    assert reason is None if said is None else reason is not None and said in reason


def parse(model_type: str, architecture: str, **values: Any) -> TransformersConfig:
    return TransformersConfig.parse({"architectures": [architecture], "model_type": model_type, **values})


@pytest.mark.parametrize(
    ("model_type", "architecture", "values", "said"),
    [
        pytest.param(
            "mamba",
            "MambaForCausalLM",
            {**SMALL, "state_size": 4},
            "transformers knows it, but it keeps a recurrent state",
            id="state",
        ),
        pytest.param(
            "openai-gpt", "OpenAIGPTLMHeadModel", {}, "its forward there takes no cache of keys", id="no cache"
        ),
        pytest.param(
            "blenderbot", "BlenderbotForCausalLM", {"is_encoder_decoder": True}, "has an encoder", id="encoder"
        ),
        pytest.param("gemma3", "Gemma3ForConditionalGeneration", {}, "is more than a language model", id="images"),
        pytest.param("gpt2", "GPT2LMHeadModel", {"n_layer": "two"}, "can't read this config", id="wrong type"),
        pytest.param("gpt2", "GPT2LMHeadModel", {"n_embd": 50, "n_head": 3}, "can't make it", id="heads"),
        pytest.param("biogpt", "BioGptForCausalLM", SMALL, "its cache can't be laid out", id="values on meta"),
        pytest.param(
            "gpt2",
            "GPT2LMHeadModel",
            {"quantization_config": {"quant_method": "gptq"}},
            "method 'gptq'",
            id="quantized",
        ),
    ],
)
def test_configs_that_it_does_not_run(model_type: str, architecture: str, values: Any, said: str) -> None:
    from bestiary_transformers.model import Wrapped

    with pytest.raises(ConfigError, match=said) as caught:
        Wrapped(parse(model_type, architecture, **values))
    assert "config.json" in str(caught.value)


def test_code_that_comes_with_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    """``auto_map`` names classes of the checkpoint's own; the module is transformers' all the same."""
    config = parse("gpt2", "GPT2LMHeadModel", **CONFIGS["gpt2"], auto_map={"AutoModelForCausalLM": "evil.Evil"})
    assert type(make_module(config)).__module__ == "transformers.models.gpt2.modeling_gpt2"


@pytest.mark.parametrize(
    ("model_type", "architecture", "values"),
    [
        ("gpt2", "GPT2LMHeadModel", {"n_embd": 2**18, "n_layer": 2, "n_head": 64, "vocab_size": 2**17}),
        pytest.param(  # its experts are made as zeros
            "llama4_text",
            "Llama4ForCausalLM",
            {
                **SMALL,
                "hidden_size": 2**16,
                "num_hidden_layers": 2,
                "num_local_experts": 2**8,
                "intermediate_size": 2**15,
            },
            id="zeros",
        ),
    ],
)
def test_a_large_module_takes_no_memory(model_type: str, architecture: str, values: Any) -> None:
    """Weights of a hundred times what a machine has are shapes only, and tied ones stay one."""
    module = make_module(parse(model_type, architecture, tie_word_embeddings=True, **values))
    assert sum(p.numel() for p in module.parameters()) > 10**12
    assert all(p.is_meta for p in module.parameters()) and not any(b.is_meta for b in module.buffers())
    assert module.lm_head.weight is module.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("model_type", "architecture", "rope", "longest"),
    [
        ("phi3", "Phi3ForCausalLM", {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}, 32),
        ("stablelm", "StableLmForCausalLM", {"rope_type": "dynamic", "factor": 4.0}, 32),
        ("stablelm", "StableLmForCausalLM", {"rope_type": "linear", "factor": 4.0}, 128),
    ],
)
def test_ropes_that_turn_old_keys_anew_end_where_they_would(
    model_type: str, architecture: str, rope: Any, longest: int
) -> None:
    said = {"rope_theta": 10000.0, "original_max_position_embeddings": 32, **rope}
    values = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_parameters": said}
    if rope["rope_type"] == "longrope":  # the family's own place for it
        values["original_max_position_embeddings"] = 32
    assert parse(model_type, architecture, **values).max_length == longest


@pytest.mark.parametrize(
    "option",
    [{"deterministic": True}, {"tensor_parallel": 2}, {"pipeline_parallel": 2}, {"memory_limit": "8GiB"}],
    ids=lambda option: next(iter(option)),
)
def test_options_that_need_layers(option: Any, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    directory, _ = made("gpt2")
    with pytest.raises(ConfigError, match=f"{next(iter(option))}: the fallback transformers can't do it"):
        LLM(directory / "ckpt", tokenizer=None, plugins=[PLUGIN], **option)


def test_tensors_that_are_missing_or_too_many_are_named(made: Any, host: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from bestiary.converters.convert import convert

    directory, _ = made("olmoe")
    stored = load_file(directory / "hf" / "model.safetensors")
    gate = "model.layers.1.mlp.experts.3.gate_proj.weight"
    for spoilt, said in (
        ({key: tensor for key, tensor in stored.items() if key != gate}, f"tensor {gate}: is missing"),
        ({**stored, "model.extra.weight": torch.zeros(2)}, "model.extra.weight: is used by no parameter"),
        ({**stored, gate: torch.zeros(2, 2)}, f"tensor {gate}: has a wrong shape"),
    ):
        save_file(spoilt, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((directory / "hf" / "config.json").read_text())
        with pytest.raises(BestiaryError, match=said):
            convert(tmp_path, tmp_path.parent / "ckpt", host=host)


def test_an_installed_family_is_used_and_the_fallback_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_PLUGINS", "")
    both = PluginHost.load(plugins=["bestiary_llama.plugin", PLUGIN])
    assert both.model_for_architecture("LlamaForCausalLM", model_type="llama").name == "llama"
    alone = PluginHost.load(plugins=[PLUGIN])
    assert alone.model_for_architecture("LlamaForCausalLM", model_type="llama").name == "transformers"
    with pytest.raises(PluginError, match=r"the fallback transformers can't stand in: transformers .* has no model"):
        alone.model_for_architecture("NewForCausalLM", model_type="new")
    assert json.dumps(alone.lock())
