"""Families with one mistake each: the kit finds it, by the check that is there for it."""

from __future__ import annotations

import pytest

from bestiary.core.conformance.model_run import Report, run
from bestiary.core.plugins import PluginHost
from bestiary.core.progress import Silent

HOST = PluginHost.load(plugins=["broken_families"])
WRONG_LOGITS = {
    "prefill", "decode", "chunked_prefill", "mixed_batch", "reference_mode", "greedy", "prompt_logprobs",
    "batch_composition", "prefix_reuse", "preemption",
}  # fmt: skip
# What fails and nothing besides; bfloat16 is measured from the reference and may fail with wrong logits.
FAILS = {
    "windowed": set(),
    "forgets_the_window": WRONG_LOGITS,
    "window_off_by_one": WRONG_LOGITS,
    "swaps_q_and_k": WRONG_LOGITS,
    "swaps_gate_and_up": WRONG_LOGITS,
    "leaves_a_norm_out": WRONG_LOGITS,
    "trusts_its_config": {"impossible_keys"},
    "hides_what_it_ignores": {"unknown_keys"},
    "takes_another_default": {"omitted_keys"},
    "ignores_head_dim": {"omitted_keys"},
    "exports_rounded": {"export"},
    "lacks_a_gguf_row": {"gguf_map"},
    "is_two_faced": {"reference_mode"},
}


def checked(name: str) -> Report:
    return run(HOST.model(name), HOST, plugins=["broken_families"], progress=Silent())


def failed(report: Report) -> dict[str, str]:
    return {one.check.removeprefix("test_"): one.text for one in report.checks if one.outcome == "failed"}


# Each takes two seconds; these three stand for the kinds of mistake in the fast suite.
FAST = ("windowed", "forgets_the_window", "ignores_head_dim")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAILS]
)
def test_a_mistake_fails_the_check_that_is_there_for_it(name: str) -> None:
    found = failed(checked(name))
    assert set(found) - {"bfloat16"} == FAILS[name] - {"bfloat16"}, found
    assert ("bfloat16" in found) <= (FAILS[name] == WRONG_LOGITS)


@pytest.mark.slow
def test_what_can_not_be_converted_fails_every_check_that_needs_it() -> None:
    found = failed(checked("misspells_a_row"))
    assert WRONG_LOGITS | {"convert", "export", "coverage", "bfloat16"} <= set(found)
    assert "model.layers.0.mlp.upp_proj.weight: is missing" in found["convert"]


@pytest.mark.slow
def test_a_forward_that_names_the_number_of_heads_fails_on_two_ranks() -> None:
    found = failed(checked("counts_heads"))
    assert set(found) == {"tensor_parallel"}
