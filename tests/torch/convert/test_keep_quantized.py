"""GGUFs whose blocks stay as they are: what is stored is what the gguf library reads, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import meeting_kernels
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from tiny import load, logits, make_hf, whole

from bestiary import ConfigError, UsageError
from bestiary.converters.convert import convert
from bestiary.converters.gguf import GGUFSource
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.verify import verify
from bestiary.core.cli.main import invoke
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.quant.choose import methods_in

Q = GGMLQuantizationType
HIDDEN, FEATURES, EXPERTS = 64, 96, 3
KEYS = {
    "embedding_length": HIDDEN, "feed_forward_length": FEATURES, "block_count": 1, "attention.head_count": 4,
    "attention.head_count_kv": 2, "context_length": 128, "expert_count": EXPERTS, "expert_used_count": 2,
}  # fmt: skip
#: Shape and block format of each tensor; of the experts' ``up`` one has another format.
TENSORS: dict[str, tuple[tuple[int, ...], GGMLQuantizationType]] = {
    "token_embd.weight": ((48, HIDDEN), Q.Q8_0),
    "output_norm.weight": ((HIDDEN,), Q.F32),
    "output.weight": ((48, HIDDEN), Q.Q4_0),
    "blk.0.attn_norm.weight": ((HIDDEN,), Q.F32),
    "blk.0.attn_q.weight": ((HIDDEN, HIDDEN), Q.Q4_1),
    "blk.0.attn_k.weight": ((HIDDEN // 2, HIDDEN), Q.Q4_0),
    "blk.0.attn_v.weight": ((HIDDEN // 2, HIDDEN), Q.Q5_0),
    "blk.0.attn_output.weight": ((HIDDEN, HIDDEN), Q.Q8_0),
    "blk.0.ffn_norm.weight": ((HIDDEN,), Q.F32),
    "blk.0.ffn_gate_inp.weight": ((EXPERTS, HIDDEN), Q.F32),
    "blk.0.ffn_down_exps.weight": ((EXPERTS, HIDDEN, FEATURES), Q.Q4_1),
    **{f"blk.0.ffn_gate.{expert}.weight": ((FEATURES, HIDDEN), Q.Q4_0) for expert in range(EXPERTS)},
    **{f"blk.0.ffn_up.{e}.weight": ((FEATURES, HIDDEN), (Q.Q4_0, Q.Q8_0, Q.Q4_0)[e]) for e in range(EXPERTS)},
}
KEPT = {
    "embed.weight": "int8", "head.weight": "int4", "layers.0.attention.q.weight": "int4",
    "layers.0.attention.k.weight": "int4", "layers.0.attention.o.weight": "int8",
    "layers.0.moe.experts.gate": "int4", "layers.0.moe.experts.down": "int4",
}  # fmt: skip


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost.load()


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory, host: PluginHost) -> Path:
    """A directory with a GGUF of many block formats, and its checkpoints ``kept`` and ``plain``."""
    directory = tmp_path_factory.mktemp("mixtral")
    random = np.random.default_rng(0)
    writer = GGUFWriter(directory / "m.gguf", "llama")
    for key, value in KEYS.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for name, (shape, kind) in TENSORS.items():
        values = (random.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
        writer.add_tensor(name, values if kind is Q.F32 else quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(directory / "m.gguf", directory / "plain", host=host, dtype="float32")
    convert(directory / "m.gguf", directory / "kept", host=host, dtype="float32", keep_quantized=True)
    return directory


@pytest.mark.parametrize("kind", [Q.Q4_0, Q.Q4_1, Q.Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(5, 96), (3, 4, 64)], ids=["matrix", "experts"])
def test_any_block_is_what_the_library_reads(
    kind: GGMLQuantizationType, shape: tuple[int, ...], tmp_path: Path, host: PluginHost
) -> None:
    random = np.random.default_rng(1)
    size, nbytes = GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (*shape[:-1], shape[-1] // size, nbytes), dtype=np.uint8)
    halves = 2 if kind is Q.Q4_1 else 1
    scales = (random.standard_normal((*data.shape[:-1], halves)) * 0.1).astype(np.float16)
    data[..., : 2 * halves] = scales.view(np.uint8)
    data = data.reshape(*shape[:-1], -1)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFSource(tmp_path / "m.gguf")
    method = methods_in({"t": source.method("t")}, host)["t"].method
    stored = source.stored("t")
    assert {name: (one.dtype, one.shape(shape)) for name, one in method.layout(shape).items()} == {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in stored.items()
    }
    expected = torch.from_numpy(dequantize(data, kind))
    assert torch.equal(method.weight(stored, shape, "float32").view(torch.int32), expected.view(torch.int32))


def test_what_a_method_can_hold_is_kept_and_the_rest_is_not(mixtral: Path, host: PluginHost) -> None:
    kept, plain = Checkpoint.open(mixtral / "kept"), Checkpoint.open(mixtral / "plain")
    verify(mixtral / "kept", host=host)
    methods = methods_in(kept.manifest.quantization, host)
    assert {name: one.name for name, one in methods.items()} == KEPT
    assert kept.manifest.dtype == "float32"
    for name, entry in plain.weights.entries.items():
        expected = plain.weights.tensor(name)
        if name not in methods:
            assert torch.equal(kept.weights.tensor(name), expected), name
            continue
        method = methods[name].method
        stored = {part: kept.weights.tensor(f"{name}.{part}") for part in method.layout(entry.shape)}
        restored = method.weight(stored, entry.shape, "float32")
        assert torch.equal(restored.view(torch.int32), expected.view(torch.int32)), name


def test_logits_are_those_of_the_dequantized_model(mixtral: Path, host: PluginHost) -> None:
    found = []
    for name in ("plain", "kept"):
        target = mixtral / f"of-{name}"
        build(mixtral / name, target / "engine", host=host, options=BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64))  # fmt: skip
        found.append(logits(load(target, host), whole([3, 7, 40, 1, 0, 22], [0, 1])))
    assert found[0].std() > 0.1 and (found[0] - found[1]).abs().max() <= 1e-5


def test_two_tensor_parallel_ranks_are_one(mixtral: Path, tmp_path: Path) -> None:
    """Experts' blocks of 32 columns are cut in two; embedding and head are divided as well."""
    host, message = PluginHost.load(plugins=[meeting_kernels]), whole([3, 7, 40, 1, 0, 22], [0, 1])
    for ranks in (1, 2):
        kernels = {"*": "torch", **meeting_kernels.CHOSEN}
        options = BuildOptions(device="cpu", max_num_tokens=64, tensor_parallel=ranks, kernels=kernels)
        build(mixtral / "kept", tmp_path / f"{ranks}", host=host, options=options)
    one = meeting_kernels.undivided(tmp_path / "1", host, message)
    assert (meeting_kernels.divided(tmp_path / "2", host, message) - one).abs().max() <= 1e-5


def test_the_command_reports_what_it_kept(mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["convert", str(mixtral / "m.gguf"), str(tmp_path / "ckpt")]
    assert invoke([*said, "--keep-quantized", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(report["kept"]) == set(KEPT) and report["dtype"] == "bfloat16"
    assert invoke([*said, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == []


def test_what_is_kept_and_what_rules_name_are_apart(mixtral: Path, tmp_path: Path, host: PluginHost) -> None:
    with pytest.raises(ConfigError, match=r"weights are kept as they are quantized, and rules name them too"):
        convert(mixtral / "m.gguf", tmp_path / "ckpt", host=host, keep_quantized=True, quantize="int8")
    assert not (tmp_path / "ckpt").exists()


def test_a_source_that_quantizes_nothing_is_refused(tmp_path: Path, host: PluginHost) -> None:
    make_hf(tmp_path / "hf")
    with pytest.raises(UsageError, match=r"option keep_quantized: .*found hf, hf, expected a GGUF file"):
        convert(tmp_path / "hf", tmp_path / "ckpt", host=host, keep_quantized=True)
    assert not (tmp_path / "ckpt").exists()
