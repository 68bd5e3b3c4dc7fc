"""What the attention layer checks where no config did."""

from __future__ import annotations

import pytest
import torch

from bestiary import ConfigError
from bestiary.layers import Attention
from bestiary.spec import Rope


@pytest.mark.parametrize(("factor", "arithmetic"), [(0.75, r"12 \* 0\.75 = 9\.0"), (0.3, r"12 \* 0\.3 = 3\.5")])
def test_a_rotated_part_that_is_no_pairs_is_the_configs_mistake(factor: float, arithmetic: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=arithmetic):
        Attention(48, heads=4, kv_heads=2, head_dim=12, rope=Rope(partial_rotary_factor=factor))


def test_the_rotated_part_of_a_head() -> None:
    with torch.device("meta"):
        made = Attention(48, heads=4, kv_heads=2, head_dim=16, rope=Rope(partial_rotary_factor=0.75))
    assert made.rotated == 12
