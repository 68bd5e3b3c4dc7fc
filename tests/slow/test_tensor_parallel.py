"""Two ranks over gloo give what one process gives; the model's forward says nothing about ranks."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from ranks import run_rank
from tiny import make_engine

from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost

pytestmark = pytest.mark.slow


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("changes", "kv_heads"),
    [
        pytest.param({}, 1, id="gqa"),
        pytest.param({"num_key_value_heads": 1}, 1, id="mqa-shares-its-head"),
        pytest.param({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, 1, id="biased-tied"),
    ],
)
def test_two_ranks_equal_one_process(tmp_path: Path, changes: dict[str, Any], kv_heads: int) -> None:
    options = BuildOptions(device="cpu", max_batch_size=4, max_num_tokens=64, tensor_parallel=2)
    model = make_engine(tmp_path, PluginHost.load(), options, **changes)
    tokens = torch.randint(3, 96, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    mp.spawn(run_rank, (2, str(tmp_path), tokens, _free_port()), nprocs=2)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    saved = [torch.load(tmp_path / f"logits-{rank}.pt") for rank in range(2)]
    for one in saved:
        assert one["kv_heads"] == {kv_heads}, "each rank stores its own heads only"
        assert (one["logits"] - expected).abs().max() < 1e-4
    assert torch.equal(saved[0]["logits"], saved[1]["logits"])
