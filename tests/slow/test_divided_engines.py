"""Ranks over gloo give what one process gives; the model's forward says nothing about ranks or stages."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("tensor", "stages", "changes"),
    [
        pytest.param(2, 1, {}, id="tensor-gqa"),
        pytest.param(2, 1, {"num_key_value_heads": 1}, id="tensor-mqa-shares-its-head"),
        pytest.param(2, 1, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, id="tensor-biased"),
        pytest.param(1, 2, {}, id="pipeline"),
        pytest.param(2, 2, {"attention_bias": True, "tie_word_embeddings": True}, id="both-biased-tied"),
    ],
)
def test_ranks_equal_one_process(tmp_path: Path, tensor: int, stages: int, changes: dict[str, Any]) -> None:
    options = BuildOptions(
        device="cpu", max_batch_size=64, max_num_tokens=64, tensor_parallel=tensor, pipeline_parallel=stages
    )
    model = make_engine(tmp_path, PluginHost.load(), options, **changes)
    tokens = torch.randint(3, 96, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    count = tensor * stages
    mp.spawn(run_rank, (tensor, stages, str(tmp_path), tokens), nprocs=count)
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    saved = [torch.load(tmp_path / f"result-{rank}.pt") for rank in range(count)]
    assert [one["layers"] for one in saved] == ([3] * tensor if stages == 1 else [2] * tensor + [1] * tensor)
    heads = model.config.num_key_value_heads
    assert all(one["kv_heads"] == {max(1, heads // tensor)} for one in saved), "each rank stores its own heads only"
    assert len({tuple(one["blocks"]) for one in saved}) == 1, "block tables hold on every rank"
    assert all(one["logits"] is None for one in saved[:-tensor])
    for one in saved[-tensor:]:
        assert (one["logits"] - expected).abs().max() < 1e-4
        assert torch.equal(one["logits"], saved[-1]["logits"])
