"""The reference model: what it can't run is said to be its fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from broken_families import TINY
from torch import Tensor, nn

from bestiary.core.conformance import model_reference
from bestiary.core.conformance.model_case import Suite
from bestiary.core.conformance.model_keys import has_class
from bestiary.core.plugins import PluginHost
from bestiary.testing import ModelConformance


class Stubborn(nn.Linear):
    """Runs in float32 only."""

    def forward(self, ids: Tensor) -> Tensor:
        assert self.weight.dtype is torch.float32, "only\nfloat32"
        return self.weight.new_zeros(*ids.shape, 40)


def test_a_reference_that_can_not_run_is_named_in_a_sentence() -> None:
    module = Stubborn(2, 2)
    assert model_reference.logits(module, [1, 2]).shape == (2, 40)
    said = r"^the reference itself can't run this config in bfloat16 \(give it other sizes\): AssertionError: only$"
    with pytest.raises(AssertionError, match=said):
        model_reference.logits(model_reference.narrowed(module, torch.bfloat16), [1, 2])


def test_a_reference_that_can_not_be_made_is_named_in_a_sentence(tmp_path: Path) -> None:
    config = {**TINY, "architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 4, "no_rope_layers": [1, 1, 0]}
    said = (
        r"^the reference itself can't be made of this config .*IndexError: list index out of range; .*no_rope_layers\["
    )
    with pytest.raises(AssertionError, match=said):
        model_reference.make(config, PluginHost.load().model("llama"), None, tmp_path / "hf")


def test_a_reference_without_a_config_class_says_nothing_of_keys_that_are_left_out(tmp_path: Path) -> None:
    class Plain(ModelConformance):
        model = "windowed"
        configs: ClassVar[dict[str, Any]] = {"tiny": TINY}
        plugins = ("broken_families",)
        reference = staticmethod(lambda config: Stubborn(2, 2))  # type: ignore[assignment]

    assert not has_class(Suite(Plain, tmp_path).cases["tiny"])


@pytest.mark.parametrize("intermediate", [20, 32])
def test_experts_of_odd_sizes_run_in_bfloat16(intermediate: int, tmp_path: Path) -> None:
    config: dict[str, Any] = {**TINY, "intermediate_size": intermediate, "num_local_experts": 3, "hidden_size": 20}
    del config["sliding_window"]
    model = PluginHost.load().model("mixtral")
    module = model_reference.make(config, model, None, tmp_path / "hf")
    exact = model_reference.logits(module, range(3, 30))
    found = model_reference.logits(model_reference.narrowed(module, torch.bfloat16), range(3, 30))
    assert 0 < float((found - exact).abs().max()) < 1
