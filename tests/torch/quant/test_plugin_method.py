"""A plugin's method goes wherever the SDK's own go: files, engines, ranks, the reference mode and the kit."""

from __future__ import annotations

import ast
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import broken_families
import meeting_kernels
import normal_float
import pytest
import torch
from tiny import logits, make_engine, whole

from bestiary import LLM, ConfigError, PluginError, SamplingParams
from bestiary.converters.quantize import quantize
from bestiary.core.checkpoint.manifest import Manifest
from bestiary.core.checkpoint.verify import verify
from bestiary.core.cli.main import invoke
from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Suite
from bestiary.core.conformance.model_quantization import within_bound
from bestiary.core.engine.build import build
from bestiary.core.engine.load import load_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Silent

HOST = PluginHost.load(plugins=[normal_float, meeting_kernels])
RULES = "normal-float, *.down=normal-float:group=4, head=int8, embed=normal-float"
MESSAGE = whole([3 + (11 * i * i + i) % 90 for i in range(30)], [5, 2])


def options(ranks: int = 1) -> BuildOptions:
    kernels = {"*": "torch", **meeting_kernels.CHOSEN}
    return BuildOptions(device="cpu", max_num_tokens=64, tensor_parallel=ranks, kernels=kernels)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain checkpoint, its engine, the quantized checkpoint and that one's engine."""
    directory = tmp_path_factory.mktemp("tiny")
    make_engine(directory, HOST, options(), num_hidden_layers=2)
    quantize(directory / "ckpt", directory / "quantized", host=HOST, rules=RULES)
    build(directory / "quantized", directory / "engine-4", host=HOST, options=options())
    return directory


def test_it_is_short_and_uses_public_names_only() -> None:
    source = Path(normal_float.__file__).read_text()
    assert len(source.splitlines()) < 80
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = {node.module for node in imports if (node.module or "").startswith("bestiary")}
    assert ours == {"bestiary", "bestiary.ops", "bestiary.quant", "bestiary.spec"}


def test_stored_and_made_while_it_is_loaded_it_is_the_same(tiny: Path) -> None:
    stored = logits(load_engine(tiny / "engine-4", host=HOST, num_blocks=8), MESSAGE).clone()
    made = load_engine(tiny / "engine", host=HOST, num_blocks=8, quantization=RULES)
    assert torch.equal(logits(made, MESSAGE), stored)
    assert not torch.equal(logits(load_engine(tiny / "engine", host=HOST, num_blocks=8), MESSAGE), stored)
    reference = load_engine(tiny / "engine-4", host=HOST, num_blocks=8, reference=True)
    assert (logits(reference, MESSAGE) - stored).abs().max() < 1e-4
    assert normal_float.restore in {one.target for one in made.network.program.instructions}
    records = Manifest.read(tiny / "quantized").quantization
    assert records["layers.1.mlp.down.weight"] == {"method": "normal-float", "group": 4}
    assert records["embed.weight"] == {"method": "normal-float", "group": 8}


def test_ranks(tiny: Path, tmp_path: Path) -> None:
    build(tiny / "quantized", tmp_path / "engine", host=HOST, options=options(2))
    one = meeting_kernels.undivided(tiny / "engine-4", HOST, MESSAGE)
    assert (meeting_kernels.divided(tmp_path / "engine", HOST, MESSAGE) - one).abs().max() < 1e-4
    uneven = replace(options(2), quantization="normal-float:group=16")
    with pytest.raises(
        ConfigError, match=r"o.weight: can't be divided .*found 0 … 24 of 48, expected a multiple of 16"
    ):
        build(tiny / "ckpt", tmp_path / "uneven", host=HOST, options=uneven)


def test_the_llm_and_a_cache_of_few_bits(tiny: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    said: dict[str, Any] = {"tokenizer": None, "plugins": [normal_float, meeting_kernels], "kv_cache_memory": 2**22}
    with LLM(tiny / "engine", quantization=RULES, kv_dtype="int8", **said) as llm:
        (out,) = llm.generate([{"prompt_token_ids": [5, 6, 7]}], params, use_tqdm=False)
    assert len(out.outputs[0].token_ids) == 5


def test_without_the_plugin_its_checkpoints_say_what_is_missing(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"method that no installed plugin provides; found normal-float") as raised:
        build(tiny / "quantized", tmp_path / "engine", host=PluginHost.load(), options=options())
    assert raised.value.code == "E-QUANT-MISSING"


def test_without_the_plugin_its_files_can_still_be_verified(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny / "quantized", tmp_path / "ckpt")
    with pytest.raises(PluginError, match="normal-float"):  # not before a build's other work
        verify(tmp_path / "ckpt", host=PluginHost.load(), progress=Unused())
    assert invoke(["verify", str(tmp_path / "ckpt")]) == 69
    said = capsys.readouterr().err
    assert re.search(r"^verify .* files, \d+ tensors\n.*no installed plugin provides; found normal-float", said, re.M)
    file = tmp_path / "ckpt" / "weights-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert invoke(["verify", str(tmp_path / "ckpt")]) == 65
    assert "weights-00001.safetensors: differs from the manifest" in capsys.readouterr().err


class Unused(Silent):
    def start(self, step: str, total: int | None, unit: str) -> None:
        pytest.fail(f"{step} has begun")


def test_it_is_exported_plain(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["-p", "normal_float", "export", str(tiny / "quantized"), str(tmp_path / "hf")]
    assert invoke(said) == 78
    assert "E-EXPORT-QUANTIZATION" in capsys.readouterr().err
    assert invoke([*said, "--dequantize"]) == 0


def test_the_kit_finds_it(tmp_path: Path) -> None:
    cls = type("Quantized", (broken_families.windowed,), {"plugins": ("broken_families", "normal_float")})
    case = Suite(cls, tmp_path).cases["tiny"]
    (method,) = (one for one in case.suite.host.quantizations() if one.name == "normal-float")
    findings: list[tuple[str, Any]] = []
    within_bound(case, method, Findings(findings))
    assert 0.2 < dict(findings)["error"] / dict(findings)["tolerance"] < 1
