"""Quantized weights: what they lose is named as theirs, by layer, and hides no mistake; one that is wrong is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import planted
import pytest
import tiny
from safetensors.torch import load_file, save_file

from bestiary.converters.convert import convert
from bestiary.converters.quantize import Calibration, quantize
from bestiary.core.checkpoint.files import digest_file
from bestiary.core.checkpoint.manifest import FileDigest, Manifest
from bestiary.core.cli.main import invoke
from bestiary.core.diff.open import Request
from bestiary.core.diff.quantization import Cost, Loss
from bestiary.core.diff.run import Result, Texts, diff
from bestiary.core.engine.build import unmeasured
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Silent

HOST = PluginHost.load(plugins=["planted"])
RULES = "int4:group=32"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A family of two layers: ``right`` from transformers, ``ckpt``, ``quantized`` and an engine of each."""
    folder = tmp_path_factory.mktemp("quantized")
    planted.write("right", folder, layers=2)
    convert(folder / "right", folder / "ckpt", host=HOST)
    quantize(folder / "ckpt", folder / "quantized", host=HOST, rules=RULES)
    engine(folder, "ckpt", "plain.engine")
    engine(folder, "quantized", "quantized.engine")
    return folder


def engine(folder: Path, checkpoint: str, name: str, **options: object) -> Path:
    small = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64, **options)
    unmeasured(folder / checkpoint, folder / name, host=HOST, options=small)
    return folder / name


def damaged(folder: Path, target: Path, parameter: str, rows: slice, factor: float, of: str = "quantized") -> Path:
    """A copy of a quantized checkpoint with some rows of a weight's scales multiplied."""
    shutil.copytree(folder / of, target)
    for file in target.glob("*.safetensors"):
        tensors = load_file(file)
        if f"{parameter}.scale" in tensors:
            tensors[f"{parameter}.scale"][rows] *= factor
            save_file(tensors, file)
            manifest = Manifest.read(target)
            size, sha256 = digest_file(target, file.name)
            files = {**manifest.files, file.name: FileDigest(size=size, sha256=sha256)}
            manifest.model_copy(update={"files": files}).write(target)
    return target


def compared(model: Path, against: str | Path, **said: object) -> Result:
    return diff(Request(str(model), str(against), said), Texts(tokens=20, seed=3), host=HOST, progress=Silent())


def test_what_quantization_loses_is_its_own(made):
    result = compared(made / "plain.engine", made / "right", quantization=RULES)
    assert result.verdict.blame == "quantization" and result.verdict.findings == ()
    assert result.verdict.text.startswith(
        "quantization (int4 of 14 weights), within its method's bound: logits are off by 0."
    )
    assert result.verdict.text.endswith(
        "with plain weights all tensors are within tolerance, and the ops' references lose as much"
    )
    loss = result.quantization
    assert loss is not None and loss.strange == () and 0.01 < loss.error < loss.allowed
    assert [one.part for one in loss.costs] == ["layers.0", "layers.1"]
    assert all(0.01 < one.error < loss.error for one in loss.costs)
    plain, references = result.outcomes
    assert (str(plain.variant), plain.gone, references.gone) == ("plain weights", True, False)


@pytest.mark.parametrize(("rows", "share"), [(slice(None), 1.0), (slice(5, 6), 1 / 32)])
def test_a_wrong_scale_is_named(made, tmp_path, rows, share):
    damaged(made, tmp_path / "ckpt", "layers.1.mlp.down.weight", rows, 2.0)
    result = compared(engine(tmp_path, "ckpt", "engine"), made / "right")
    assert result.verdict.blame == "quantization"
    assert result.verdict.text.startswith("quantization of layers.1.mlp.down.weight (int4): ")
    assert result.quantization is not None
    (strange,) = result.quantization.strange
    assert strange.share == pytest.approx(share) and strange.times > 3
    if share == 1:
        assert max(result.quantization.costs, key=lambda one: one.error).part == "layers.1"


@pytest.mark.parametrize("method", ["int4:group=32:quantizer=awq", "int4:group=32:quantizer=gptq", "w8a8:smooth=0.5"])
def test_a_wrong_scale_of_a_calibrated_weight_is_named(made, tmp_path, method):
    """A calibration may move scales between norms and weights, and into rows of other weights: they are no mistakes."""
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"tokens": list(range(start, start + 24))}) for start in range(0, 40, 8)))
    quantize(made / "ckpt", tmp_path / "right", host=HOST, rules=method, calibration=Calibration(text, 5, 24))
    result = compared(engine(tmp_path, "right", "right.engine"), made / "right")
    assert result.verdict.blame == "quantization" and "within its method's bound" in result.verdict.text
    for parameter, rows in (("layers.1.mlp.down.weight", slice(None)), ("layers.0.mlp.up.weight", slice(3, 4))):
        damaged(tmp_path, tmp_path / parameter, parameter, rows, 3.0, of="right")
        result = compared(engine(tmp_path, parameter, f"{parameter}.engine"), made / "right")
        assert result.verdict.text.startswith(f"quantization of {parameter} ("), result.verdict.text


def test_a_mistake_is_found_behind_quantization(made):
    result = compared(made / "quantized.engine", made / "right", kernels={"rms_norm": "wrong_other_eps"})
    assert result.verdict.text.startswith("kernel rms_norm=wrong_other_eps of planted unversioned")
    assert result.few_bits.startswith("of ours with plain weights, in place of quantization (int4 of 14 weights)")
    assert result.quantization is None


def test_a_kernel_that_reads_codes_wrongly_is_named(made):
    result = compared(made / "quantized.engine", made / "right", kernels={"quantized_linear": "wrong_nibbles"})
    assert result.verdict.text.startswith("kernel quantized_linear=wrong_nibbles of planted unversioned")
    assert "1.5 times" in result.few_bits


def test_with_a_cache_of_few_bits(made):
    result = compared(made / "quantized.engine", made / "right", kv_dtype="int8")
    assert result.verdict.blame == "quantization" and "1 allowed; the cache's int8 comes to that" in result.verdict.text
    assert str(result.outcomes[0].variant) == "plain weights and the KV cache in float32"


def test_activations_without_plain_weights(made, tmp_path):
    """Of a checkpoint alone the other side has the weights as they are restored, and ours in float32 has them, too."""
    quantize(made / "ckpt", tmp_path / "w8a8", host=HOST, rules="w8a8")
    result = compared(engine(tmp_path, "w8a8", "engine"), "hf")
    assert result.verdict.blame == "quantization" and result.quantization is not None
    assert not result.quantization.judged and result.quantization.strange == ()
    weights_alone = compared(made / "quantized.engine", "hf")
    assert weights_alone.verdict.blame == "nothing"
    assert compared(made / "quantized.engine", made / "quantized.engine").verdict.blame == "nothing"


def test_the_command_says_it(made, tmp_path, capsys):
    page = tmp_path / "page.html"
    tiny.make_hf(tmp_path / "hf", num_hidden_layers=2)
    args = ["diff", str(tmp_path / "hf"), "--quantize", RULES, "--tokens", "20", "--max-num-tokens", "64"]
    assert invoke([*args, "--html", str(page)]) == 70
    shown = capsys.readouterr().out
    assert (
        "quantized alone" in shown
        and "layers.1" in shown
        and "to blame: quantization (int4 of 14 weights), within" in shown
    )
    assert "What quantized weights cost" in page.read_text()
    assert invoke([*args, "--json"]) == 70
    found = json.loads(capsys.readouterr().out)
    assert found["quantization"]["judged"] and len(found["quantization"]["costs"]) == 2


def test_a_loss_beyond_the_bound_names_the_layer():
    loss = Loss("int4 of 2 weights", error=1.5, allowed=1.0, costs=(Cost("layers.0", 0.2), Cost("layers.1", 1.4)))
    assert not loss.within and loss.text == (
        "quantization of layers.1 most (int4 of 2 weights), beyond its method's bound: logits are off by 1.5 of their size, "
        "1 allowed; that of layers.1 alone moves them by 1.4"
    )
