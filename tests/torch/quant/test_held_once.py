"""Weights that are quantized while an engine is loaded: no weight is held twice, and only one is wide at a time."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, make_engine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bestiary.core.engine.load import load_engine, random_engine
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost

HOST = PluginHost.load()
SIZES: dict[str, Any] = {"num_hidden_layers": 8, "hidden_size": 96, "intermediate_size": 256, "vocab_size": 96}
#: Bytes of the largest weight in fp32, and of all layers' weights.
LARGEST = 4 * 256 * 96
LAYERS = 8 * (3 * LARGEST + 4 * (2 * 96 * 96 + 2 * 48 * 96))


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that ops made, while they live; pages of files are not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given | self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _gone(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("eight")
    make_engine(directory, HOST, BuildOptions(device="cpu", max_batch_size=1, max_num_tokens=8), **SIZES)
    return directory / "engine"


#: What remains of the layers' weights, as a part of their bytes in fp32.
REMAINS = {"int8": 0.25, "int4:group=32:clip=true": 0.14, "w8a8": 0.25, "fp8": 1.0}


@pytest.mark.parametrize("rules", REMAINS)
def test_from_files(engine: Path, rules: str) -> None:
    with Held() as held:
        loaded = load_engine(engine, host=HOST, num_blocks=2, quantization=rules)
    check(held, rules)
    del loaded


@pytest.mark.parametrize("rules", REMAINS)
def test_random_ones(tmp_path: Path, rules: str) -> None:
    said = {**SMALL, **SIZES, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    options = BuildOptions(device="cpu", max_batch_size=1, max_num_tokens=8, quantization=rules)
    with Held() as held:
        loaded = random_engine(tmp_path, host=HOST, options=options, num_blocks=2)
    check(held, rules)
    del loaded


def check(held: Held, rules: str) -> None:
    """Beside what remains, random embeddings among it, a weight is wide, with what its rounding makes of it."""
    assert REMAINS[rules] <= held.now / LAYERS < REMAINS[rules] + 0.04
    assert held.most - held.now < 5 * LARGEST < LAYERS / 6
