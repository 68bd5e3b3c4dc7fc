"""The check of quantization methods, with methods that are wrong in one way each."""

from __future__ import annotations

from typing import Any

import broken_families
import pytest
import torch

from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case, Suite
from bestiary.core.conformance.model_noise import allowed, error
from bestiary.core.conformance.model_quantization import CACHES, caches, ranks_agree, within_bound
from bestiary.core.engine.steps import logits, whole
from bestiary.core.errors import PluginError
from bestiary.core.quant.bound import ALLOWED, noisy, relative
from bestiary.spec import Quantization


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    cls = type("Quantized", (broken_families.windowed,), {"plugins": ("broken_families", "quantizations")})
    return Suite(cls, tmp_path_factory.mktemp("quantized")).cases["tiny"]


def method(case: Case, name: str) -> Quantization:
    return next(one for one in case.suite.host.quantizations() if one.name == name)


def test_a_method_within_its_bound_passes_and_is_measured(case: Case) -> None:
    properties: list[tuple[str, Any]] = []
    within_bound(case, method(case, "generous"), Findings(properties))
    found = dict(properties)
    assert found["tolerance"] == allowed(case, 0.5) and 0.01 < found["error"] < found["tolerance"]


def test_a_method_out_of_its_bound_fails(case: Case) -> None:
    with pytest.raises(AssertionError, match=r"logits with strict, relative: off by 0\.\d+, and 0\.00\d+ is allowed"):
        within_bound(case, method(case, "strict"), Findings([]))


def test_a_method_that_changes_nothing_fails(case: Case) -> None:
    with pytest.raises(AssertionError, match="plain changed nothing: the engine is not quantized"):
        within_bound(case, method(case, "plain"), Findings([]))


@pytest.mark.parametrize("name", ["boundless", "negative"])
def test_a_method_that_states_no_bound_fails(case: Case, name: str) -> None:
    with pytest.raises(AssertionError, match=rf"quantization {name}: its method states no bound"):
        within_bound(case, method(case, name), Findings([]))


def test_what_is_no_method_fails(case: Case) -> None:
    with pytest.raises(PluginError, match=r"quantization number: is not what its plugin says.*a subclass of"):
        within_bound(case, method(case, "number"), Findings([]))


def test_a_config_that_a_method_can_not_take_is_refused_with_the_arithmetic(case: Case) -> None:
    properties: list[tuple[str, Any]] = []
    within_bound(case, method(case, "refusing"), Findings(properties))
    assert dict(properties)["refused"] == "refusing: a weight: 24 rows, expected a multiple of 64"
    with pytest.raises(AssertionError, match="silent refuses the config without the arithmetic"):
        within_bound(case, method(case, "silent"), Findings([]))


def test_a_method_that_wants_a_calibration_is_noted(case: Case) -> None:
    properties: list[tuple[str, Any]] = []
    within_bound(case, method(case, "careful"), Findings(properties))
    assert dict(properties)["refused"].startswith("careful: wants a calibration")


def test_a_method_is_checked_with_its_variants_in_the_long_form(case: Case) -> None:
    within_bound(case, method(case, "twofold"), Findings([]))
    with pytest.raises(AssertionError, match="logits with twofold:bits=1, relative: off by"):
        within_bound(case, method(case, "twofold"), Findings([]), thorough=True)


def test_twice_the_harm_of_errors_of_the_stated_size_is_allowed(case: Case) -> None:
    weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
    noise = noisy(weight, 0.05) - weight
    assert float(noise.square().mean().sqrt()) == pytest.approx(0.05, rel=0.02)
    assert torch.equal(noisy(weight, 0.05) - weight, noise), "the same whenever it is made"
    assert error(case, case.load()) < 1e-5 < allowed(case, 0.001) < allowed(case, 0.05) / 10
    assert allowed(case, 0.05) / ALLOWED < 1


def test_caches_are_held_to_what_so_many_bits_allow(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    properties: list[tuple[str, Any]] = []
    caches(case, Findings(properties))
    assert 0 < dict(properties)["error"] < dict(properties)["tolerance"] <= allowed(case, 0.12)
    monkeypatch.setitem(CACHES, "int4", 0.002)
    with pytest.raises(AssertionError, match="logits with a cache of int4, relative: off by"):
        caches(case, Findings([]))


def test_an_error_is_that_of_half_of_the_tokens() -> None:
    exact = torch.tensor([[1.0, -1.0], [3.0, 1.0]])
    assert relative(exact + 0.5, exact).tolist() == pytest.approx([0.5, 0.5])
    assert relative(exact.flip(-1), exact).tolist() == pytest.approx([2.0, 2.0])


def test_two_ranks_have_the_numbers_of_one_where_weights_alone_are_quantized(case: Case) -> None:
    tokens = case.tokens(case.length)
    one = logits(case.load(quantization="int8"), whole(tokens, *case.blocks(1)))
    ranks_agree(case, {"quantization": "int8"}, one + 5e-5, Findings([]))
    with pytest.raises(AssertionError, match="logits of two ranks with int8: off by"):
        ranks_agree(case, {"quantization": "int8"}, one + 1e-3, Findings([]))
    for quantized in ({"quantization": "w8a8"}, {"kv_dtype": "int8"}):
        ranks_agree(case, quantized, one + 1e-3, Findings([]))
        with pytest.raises(AssertionError, match=r"logits of two ranks with (w8a8|int8), relative: off by"):
            ranks_agree(case, quantized, one.flip(-1), Findings([]))


def test_a_method_that_can_not_be_divided_is_noted(case: Case) -> None:
    properties: list[tuple[str, Any]] = []
    ranks_agree(case, {"quantization": "int8"}, "down: 0 … 5 of 10, expected a multiple of 2", Findings(properties))
    assert dict(properties)["refused"].startswith("int8: down: 0 … 5 of 10")
