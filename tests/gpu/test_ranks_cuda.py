"""Ranks over NCCL, a GPU each."""

from __future__ import annotations

import pytest
import torch
from rank_workers import check_three_steps

from bestiary import ConfigError
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.ranks import RankExecutor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
@pytest.mark.parametrize("shape", [(2, 1), (1, 2)], ids=["tensor", "pipeline"])
def test_two_gpus_answer_as_one(shape: tuple[int, int]) -> None:
    ranks = _start(*shape)
    assert [fact["device"] for fact in ranks.facts] == ["cuda:0", "cuda:1"]
    assert [fact["least"] for fact in ranks.facts] == [[5, 8]] * 2
    check_three_steps(ranks)
    ranks.close()


def test_more_ranks_than_gpus_are_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"there is no such GPU; found cuda:{count}"):
        _start(count + 1, 1)


def _start(tensor: int, stages: int) -> RankExecutor:
    return RankExecutor(
        tensor=tensor,
        stages=stages,
        device="cuda",
        host=PluginHost.load(),
        worker="rank_workers:summing",
        arguments={},
    )
