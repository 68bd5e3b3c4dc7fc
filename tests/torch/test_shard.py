"""Cutting a program for a rank: which slices it holds, and what can't be cut."""

from __future__ import annotations

import pytest
import torch
from tiny import SMALL
from torch import nn

from bestiary import ConfigError
from bestiary.core.ops.collective import Ranks
from bestiary.core.program.passes.shard import bounds, shard
from bestiary.core.program.program import Program, Weight
from bestiary.core.program.shapes import Geometry, infer
from bestiary.core.program.trace import trace
from bestiary_llama.config import LlamaConfig
from bestiary_llama.model import Llama


def _llama(**changes: object) -> nn.Module:
    with torch.device("meta"):
        return Llama(LlamaConfig.parse({**SMALL, "architectures": ["LlamaForCausalLM"], **changes}))


def _parts(program: Program) -> dict[str, tuple[int | None, int, int]]:
    parts = [part for weight in program.weights() if isinstance(weight, Weight) for part in weight.parts]
    return {part.parameter: (part.axis, part.start, part.stop) for part in parts}


def test_each_rank_holds_its_slices() -> None:
    model = _llama()
    program = trace(model)
    shard(program, model, Ranks(1, 2))
    parts = _parts(program)
    assert parts["layers.0.attention.q.weight"] == (0, 24, 48)
    assert parts["layers.0.attention.k.weight"] == (0, 12, 24)
    assert parts["layers.0.attention.o.weight"] == (1, 24, 48)
    assert parts["layers.0.mlp.down.weight"] == (1, 40, 80)
    assert parts["embed.weight"] == (0, 48, 96)
    assert parts["layers.0.attention_norm.weight"][0] is None
    names = [instruction.target.name for instruction in program.instructions]
    assert names.count("all_reduce") == 2 * 3 + 1
    assert names.count("all_gather") == 1
    shapes = infer(program, Geometry(torch.float32, torch.float32, 16, 8))
    assert str(shapes[program.outputs["logits"]]) == "float32[R, 96]"


def test_the_ranks_slices_make_the_whole() -> None:
    slices = [bounds(8, 96, Ranks(rank, 4), "q") for rank in range(4)]
    assert slices == [(0, 24), (24, 48), (48, 72), (72, 96)]


def test_fewer_heads_than_ranks_are_shared_by_neighbours() -> None:
    assert [bounds(2, 32, Ranks(rank, 4), "k") for rank in range(4)] == [(0, 16), (0, 16), (16, 32), (16, 32)]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, r"attention\.q\.weight.*3 units of 16 features"),
        ({"vocab_size": 97}, r"embed\.weight: the vocabulary.*found 97 rows"),
        ({"intermediate_size": 81}, r"mlp\.gate\.weight.*found 81 units"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_arithmetic(changes: dict[str, int], complaint: str) -> None:
    model = _llama(**changes)
    with pytest.raises(ConfigError, match=complaint):
        shard(trace(model), model, Ranks(0, 2))
