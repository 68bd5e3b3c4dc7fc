"""D20: model plugins whose layers, heads or caches contradict the tensors are refused, with the arithmetic."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from scratch import Environment

pytestmark = pytest.mark.slow

# Two layers of 4 heads of 4 features over 2 key-value heads; "uneven" is an honest model of 3.
SCRIPT = """
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bestiary import BestiaryError
from bestiary.converters.convert import convert
from bestiary.core.engine.build import build
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost


def attempt(name, model, kv_heads):
    shapes = {"embed": (32, 16), "norm": (16,)}
    for layer in range(2):
        q, k = (16, 16), (4 * kv_heads, 16)
        shapes |= {f"layer.{layer}.{part}": s for part, s in zip("norm q k v o".split(), ((16,), q, k, k, q))}
    folder = Path(name)
    folder.mkdir()
    save_file({f"{one}.weight": np.ones(s, np.float32) for one, s in shapes.items()}, folder / "model.safetensors")
    config = {
        "architectures": [f"{model}ForCausalLM"], "model_type": model, "hidden_size": 16, "vocab_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    try:
        convert(folder, Path(f"{name}.ckpt"), host=host)
        options = BuildOptions(device="cpu", max_batch_size=2, max_num_tokens=16)
        build(Path(f"{name}.ckpt"), Path(f"{name}.engine"), host=host, options=options)
    except BestiaryError as error:
        return {**error.as_dict(), "status": error.exit_status, "written": Path(f"{name}.engine").exists()}
    return {"code": None}


host = PluginHost.load()
attempts = {name: attempt(name, name, 2) for name in ("honest", "more", "fewer", "heads", "cache", "single")}
print(json.dumps({**attempts, "uneven": attempt("uneven", "honest", 3)}))
"""


@pytest.fixture(scope="module")
def attempts(scratch: Environment) -> Any:
    ran = scratch.python(SCRIPT, plugins="liar")
    assert ran.status == 0, ran
    return ran.json


def test_a_model_that_says_the_truth_is_built(attempts: Any) -> None:
    assert attempts["honest"] == {"code": None}


@pytest.mark.parametrize(
    ("lie", "status", "subject", "found", "expected"),
    [
        ("more", 65, r"layer\.2\..*", "12 tensors, none of that name", r"shape \[16\]"),
        ("fewer", 65, r"layer\.1\..*", r"shape \[8, 16\]", "the tensors of 2 layers"),
        ("heads", 65, r"layer\.0\.k\.weight", r"\[8, 16\]", r"\[16, 16\] from .*hidden_size=16"),
        ("cache", 69, r"model cache \(demo-liar 1.0\), cache layers.0.attention.cache", "2 × 4 = 8", "4 × 4 = 16"),
        ("single", 69, r"model single \(demo-liar 1.0\), cache layers.0.attention.cache", "2 × 4 = 8", "1 × 4 = 4"),
        ("uneven", 69, r"model honest .*, cache layers.0.attention.cache", r"4 = 1 × 3 \+ 1", "a multiple of 3"),
    ],
)
def test_D20_a_contradiction_is_refused(
    attempts: Any, lie: str, status: int, subject: str, found: str, expected: str
) -> None:
    error = attempts[lie]
    assert (error["status"], error["written"]) == (status, False)
    assert re.search(subject, error["subject"]) and re.fullmatch(found, error["found"]), json.dumps(error)
    assert re.match(expected, error["expected"]) and error["hint"]
