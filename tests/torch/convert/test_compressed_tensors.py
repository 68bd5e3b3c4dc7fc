"""Exports of quantized checkpoints: compressed-tensors' own code packs and restores the same, and transformers loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import load, logits, whole

from bestiary import ConfigError
from bestiary.converters.compressed_tensors import quantization_config, scheme_of, tensors_of
from bestiary.converters.convert import convert
from bestiary.converters.export import export
from bestiary.converters.quantize import quantize
from bestiary.core.cli.main import invoke
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.quant.method import Method
from bestiary.core.quant.methods import FP8, W8A8, Int4, Int8

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 32, "tie_word_embeddings": False,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {}, "Mistral": {"sliding_window": None}, "Qwen3": {},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "Mixtral": {"num_local_experts": 4, "sliding_window": None},
}  # fmt: skip
TOKENS = [3, 7, 40, 1, 0, 22, 95, 11]
METHODS = {
    "int8": Int8(), "int8 in groups": Int8(group=32), "int4": Int4(group=32), "one group": Int4(group=128),
    "zero points": Int4(group=32, zeros="integer"), "a zero point a row": Int4(group=128, zeros="integer"),
    "w8a8": W8A8(), "rows": FP8(), "tensor": FP8(weights="tensor"),
    "blocks": FP8(weights="block"), "static": FP8(activations="static"),
}  # fmt: skip


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, host: PluginHost) -> Any:
    """Plain checkpoints of tiny models, by family, each made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            config = getattr(transformers, f"{name}Config")(**{**SIZES, **MODELS[name]})
            getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(directory / "hf")
            convert(directory / "hf", directory / "ckpt", host=host)
            made[name] = directory / "ckpt"
        return made[name]

    return of


def stored_of(method: Method, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    stored = method.model_copy(update={"activations": "dynamic"}).quantize(torch.randn(shape))
    return stored if "input_scale" not in method.layout(shape) else {**stored, "input_scale": torch.tensor([[0.25]])}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(48, 128), (130, 128)], ids=str)
def test_tensors_are_those_of_the_library(name: str, shape: tuple[int, int]) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: make test installs it")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    torch.manual_seed(0)
    method = METHODS[name]
    stored = {part: tensor.float() if tensor.is_floating_point() and tensor.itemsize == 2 else tensor for part, tensor in stored_of(method, shape).items()}  # fmt: skip
    scheme = scheme_of(method, shape, "w", expert=False)
    layout = {part: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for part, t in stored.items()}
    ours = {}
    for one in tensors_of(scheme, layout, shape):
        ours[one.name] = one.make(None if one.part is None else stored[one.part])
        assert (str(ours[one.name].dtype), tuple(ours[one.name].shape)) == (f"torch.{one.dtype}", one.shape)
    config = QuantizationConfig.model_validate(quantization_config({"w": scheme}))
    group = config.config_groups["group_0"]
    library = BaseCompressor.get_value_from_registry(config.format)
    restored = library.decompress(dict(ours), group)["weight"]
    assert torch.equal(restored, method.weight(stored, shape, "float32"))
    wide = {"weight": restored, "weight_scale": ours["weight_scale"]}
    if "zero" in stored:
        wide["weight_zero_point"] = (stored["zero"].to(torch.int16) - 8).to(torch.int8)
    for part, tensor in library.compress(wide, group).items():
        same = tensor.float() == ours[part].float() if tensor.itemsize == 1 else tensor == ours[part]
        assert same.all(), part


@pytest.mark.parametrize(
    ("family", "rules", "tolerance"),
    [
        ("Llama", "int8", 1e-5), ("Mistral", "int4:group=32", 1e-5), ("Qwen3", "int8:group=32, lm_head=int4", 1e-5),
        ("Llama", "int4:group=64, lm_head=int8, layers.1.mlp.down=none", 1e-5),
        ("Qwen3Moe", "int4:group=32", 1e-4), ("Mixtral", "int8", 1e-5),
    ],
)  # fmt: skip
def test_transformers_loads_weights_and_agrees(
    family: str, rules: str, tolerance: float, checkpoints: Any, tmp_path: Path, host: PluginHost
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: make test installs it")
    quantize(checkpoints(family), tmp_path / "ckpt", host=host, rules=rules)
    report = export(tmp_path / "ckpt", tmp_path / "hf", host=host)
    assert report.kept
    options = BuildOptions(device="cpu", dtype="float32", max_batch_size=4, max_num_tokens=64)
    build(tmp_path / "ckpt", tmp_path / "engine", host=host, options=options)
    ours = logits(load(tmp_path, host, reference=True), whole(TOKENS, [0, 1]))
    theirs = hf_logits(tmp_path / "hf")
    assert ours.std() > 0.1 and (ours - theirs).abs().max() <= tolerance


@pytest.mark.parametrize("rules", ["w8a8", "fp8", "fp8:weights=tensor", "int8, *.o_proj=fp8, lm_head=w8a8"])
def test_transformers_restores_the_weights_of_other_methods(
    rules: str, checkpoints: Any, tmp_path: Path, host: PluginHost
) -> None:
    """Activations as they are: the library rounds them onto −128 … 127 where we take −127 … 127."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: make test installs it")
    quantize(checkpoints("Llama"), tmp_path / "ckpt", host=host, rules=rules)
    export(tmp_path / "ckpt", tmp_path / "hf", host=host)
    export(tmp_path / "ckpt", tmp_path / "plain", host=host, dequantize=True)
    plain = hf_logits(tmp_path / "plain")
    assert (plain - hf_logits(tmp_path / "hf", activations=False)).abs().max() <= 1e-6
    assert 1e-4 < (plain - hf_logits(tmp_path / "hf")).abs().max() < 0.1


def test_zero_points_load_with_dequantize(checkpoints: Any, tmp_path: Path, host: PluginHost) -> None:
    """Otherwise version 0.20 expects them unpacked, which its own packer does not write."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: make test installs it")
    quantize(checkpoints("Llama"), tmp_path / "ckpt", host=host, rules="int4:group=32:zeros=integer")
    export(tmp_path / "ckpt", tmp_path / "hf", host=host)
    export(tmp_path / "ckpt", tmp_path / "plain", host=host, dequantize=True)
    said = transformers.CompressedTensorsConfig(dequantize=True)
    found = hf_logits(tmp_path / "hf", quantization_config=said)
    assert (found - hf_logits(tmp_path / "plain")).abs().max() <= 1e-3  # it restores in fp16


def hf_logits(directory: Path, *, activations: bool = True, **said: Any) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **said)
    for module in model.modules():
        if not activations and hasattr(module, "quantization_scheme"):
            module.quantization_scheme.input_activations = None
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return found


def test_static_scales_of_activations_are_written() -> None:
    scheme = scheme_of(W8A8(activations="static"), (8, 16), "w", expert=False)
    stored = stored_of(W8A8(activations="static"), (8, 16))
    layout = {part: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for part, t in stored.items()}
    (scale,) = (one for one in tensors_of(scheme, layout, (8, 16)) if one.name == "input_scale")
    assert scale.make(stored["input_scale"]).tolist() == [0.25]
    assert scheme.activations == {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "strategy": "tensor"}  # fmt: skip


def test_modules_that_differ_in_numbers_alone_are_one_target(checkpoints: Any, tmp_path: Path, host: PluginHost) -> None:  # fmt: skip
    quantize(checkpoints("Llama"), tmp_path / "ckpt", host=host, rules="int8, layers.1.mlp.down=none")
    export(tmp_path / "ckpt", tmp_path / "hf", host=host)
    said = json.loads((tmp_path / "hf" / "config.json").read_text())["quantization_config"]
    assert said["format"] == "pack-quantized" and list(said["config_groups"]) == ["group_0"]
    targets = said["config_groups"]["group_0"]["targets"]
    assert r"re:^model\.layers\.\d+\.self_attn\.q_proj$" in targets and len(targets) == 7
    assert "model.layers.0.mlp.down_proj" in targets
    assert said["ignore"] == ["model.embed_tokens", "model.layers.1.mlp.down_proj", "lm_head"]
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    assert weights["model.layers.0.mlp.down_proj.weight_shape"].tolist() == [128, 192]
    assert weights["model.layers.1.mlp.down_proj.weight"].shape == (128, 192)


@pytest.mark.parametrize(
    ("family", "rules", "problem"),
    [
        ("Llama", "int4:zeros=minimum", r"q\.weight: has minima.*found zeros=minimum.*--dequantize"),
        ("Llama", "int4:group=128", r"down\.weight: .*last group is shorter.*found 192 columns, expected a multiple of 128"),
        ("Llama", "fp8:weights=block", r"down\.weight: .*last group is shorter.*found 192 columns"),
        ("Llama", "embed=int8", r"parameter embed\.weight: is an embedding"),
        ("Mixtral", "int8, layers.1.moe.experts.up=none", r"0\.moe\.experts\.gate: is of experts, and so is layers\.1\.moe\.experts\.up"),
    ],
)  # fmt: skip
def test_what_the_format_can_not_say_is_refused_and_written_plain(
    family: str, rules: str, problem: str, checkpoints: Any, tmp_path: Path, host: PluginHost
) -> None:
    quantize(checkpoints(family), tmp_path / "ckpt", host=host, rules=rules)
    with pytest.raises(ConfigError, match=problem):
        export(tmp_path / "ckpt", tmp_path / "hf", host=host)
    assert not (tmp_path / "hf").exists()
    assert invoke(["export", str(tmp_path / "ckpt"), str(tmp_path / "hf"), "--dequantize"]) == 0
    convert(tmp_path / "hf", tmp_path / "back", host=host)
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    before, after = load_file(checkpoints(family).parent / "hf" / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")  # fmt: skip
    assert before.keys() == after.keys() and all(before[name].dtype == after[name].dtype for name in before)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all((before[name] - after[name]).abs().max() < 0.05 for name in changed)
