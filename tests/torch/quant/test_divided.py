"""Two tensor-parallel ranks, threads here, have the numbers of one process with every method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import meeting_kernels
import pytest
import torch
from meeting_kernels import divided, undivided
from tiny import make_engine, whole
from torch import Tensor

from bestiary.converters.quantize import Calibration, quantize
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.quant.methods import FP8

HOST = PluginHost.load(plugins=[meeting_kernels])
MESSAGE = whole([3 + (11 * i * i + i) % 90 for i in range(30)], [5, 2])
#: The 80 columns of down and the 48 of o are cut within a group, which goes on as smaller ones.
WEIGHTS = (
    "int8", "int8:group=32", "int4", "int4:group=32", "int4:group=128:zeros=integer", "int4:group=32:zeros=minimum",
    "int4:clip=true, *.down=int8, o=none", "int4:group=32, embed=int8, head=int4:zeros=integer",
    "fp8", "fp8:weights=tensor", "fp8:weights=block",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(ranks: int) -> BuildOptions:
    kernels = {"*": "torch", **meeting_kernels.CHOSEN}
    return BuildOptions(device="cpu", max_num_tokens=64, tensor_parallel=ranks, kernels=kernels)


def made(directory: Path, **changes: Any) -> Path:
    """A checkpoint with its engines for one rank and for two."""
    make_engine(directory, HOST, options(1), **changes)
    build(directory / "ckpt", directory / "engine-2", host=HOST, options=options(2))
    return directory


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("tiny"), num_hidden_layers=2)


def both(directory: Path, **said: Any) -> tuple[Tensor, Tensor]:
    return undivided(directory / "engine", HOST, MESSAGE, **said), divided(
        directory / "engine-2", HOST, MESSAGE, **said
    )


def off(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, as a part of the deviation."""
    return float((found - exact).square().mean().sqrt() / exact.std())


@pytest.mark.parametrize("rules", WEIGHTS)
def test_quantized_weights(tiny: Path, rules: str) -> None:
    one, two = both(tiny, quantization=rules)
    assert off(two, one) < 1e-5
    assert off(one, undivided(tiny / "engine", HOST, MESSAGE)) > 1e-3


def test_activations_are_quantized_by_each_rank_for_its_own_columns(tiny: Path) -> None:
    exact = undivided(tiny / "engine", HOST, MESSAGE)
    one, two = both(tiny, quantization="w8a8, *.o=int8, *.down=int8")
    assert off(two, one) < 1e-5, "no rank quantizes a part of a row"
    one, two = both(tiny, quantization="w8a8")
    assert 1e-3 < off(two, exact) < 1.1 * off(one, exact)
    assert off(two, one) < off(one, exact)


@pytest.mark.parametrize(
    "rules", ["w8a8:activations=static", "w8a8:activations=static:smooth=0.5", "int4:quantizer=gptq:order=true"]
)
def test_calibrated_checkpoints(tiny: Path, tmp_path: Path, rules: str) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"tokens": [(7 * i + n) % 96 for i in range(40)]}) for n in range(4)))
    quantize(tiny / "ckpt", tmp_path / "ckpt", host=HOST, rules=rules, calibration=Calibration(text))
    for ranks, name in ((1, "engine"), (2, "engine-2")):
        build(tmp_path / "ckpt", tmp_path / name, host=HOST, options=options(ranks))
    one, two = both(tmp_path)
    assert off(two, one) < 1e-5


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes that two ranks divide into blocks of 128."""
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 128,
    }
    return made(tmp_path_factory.mktemp("wide"), num_hidden_layers=1, **sizes)


@pytest.mark.parametrize("weights", ["row", "tensor", "block"])
def test_fp8_where_it_is_more_than_storage(wide: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    monkeypatch.setattr(FP8, "storage_only", lambda self, device: False)
    exact = undivided(wide / "engine", HOST, MESSAGE)
    one, two = both(wide, quantization=f"fp8:weights={weights}")
    assert 1e-3 < off(two, exact) < 1.1 * off(one, exact)
    if weights != "block":  # whose scales are of 128 columns, of which each rank has its own
        one, two = both(wide, quantization=f"fp8:weights={weights}, *.o=none, *.down=none")
    assert off(two, one) < 1e-4
