"""The check of quantization methods, with methods that are planted and a build that rounds weights for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import broken_families
import pytest
from safetensors.torch import load_file, save_file

from bestiary.converters.convert import convert
from bestiary.core.conformance import model_case
from bestiary.core.conformance.findings import Findings
from bestiary.core.conformance.model_case import Case, Suite
from bestiary.core.conformance.model_quantization import within_bound
from bestiary.core.engine.build import build
from bestiary.core.errors import ConfigError
from bestiary.spec import Quantization


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    cls = type("Quantized", (broken_families.windowed,), {"plugins": ("broken_families", "quantizations")})
    return Suite(cls, tmp_path_factory.mktemp("quantized")).cases["tiny"]


@pytest.fixture
def rounding(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A build that quantizes: weights of three significant bits."""

    def rounded(checkpoint: Path, target: Path, *, host: Any, options: Any) -> None:
        if options.quantization is not None:
            source = tmp_path / "rounded"
            source.mkdir()
            (source / "config.json").write_bytes((case.source / "config.json").read_bytes())
            weights = load_file(case.source / "model.safetensors")
            save_file({name: (t * 16).round() / 16 for name, t in weights.items()}, source / "model.safetensors")
            checkpoint = tmp_path / "rounded-checkpoint"
            convert(source, checkpoint, host=host)
        build(checkpoint, target, host=host, options=options)

    monkeypatch.setattr(model_case, "build", rounded)
    case._engines.clear()
    case.directory = tmp_path
    case.__dict__.pop("module", None)
    case.__dict__.pop("report", None)


def method(case: Case, name: str) -> Quantization:
    return next(one for one in case.suite.host.quantizations() if one.name == name)


def test_a_method_within_its_bound_passes_and_is_measured(case: Case, rounding: None) -> None:
    properties: list[tuple[str, Any]] = []
    within_bound(case, method(case, "generous"), Findings(properties))
    found = dict(properties)
    assert found["tolerance"] == 0.5 and 0.01 < found["error"] < 0.5


def test_a_method_out_of_its_bound_fails(case: Case, rounding: None) -> None:
    with pytest.raises(AssertionError, match=r"logits with strict, relative: off by 0\.\d+, and 0.0001 is allowed"):
        within_bound(case, method(case, "strict"), Findings([]))


def test_a_method_that_the_build_does_not_apply_fails(case: Case) -> None:
    with pytest.raises(AssertionError, match="generous changed nothing: the engine is not quantized"):
        within_bound(case, method(case, "generous"), Findings([]))


@pytest.mark.parametrize("name", ["boundless", "negative"])
def test_a_method_that_states_no_bound_fails(case: Case, name: str) -> None:
    with pytest.raises(AssertionError, match=rf"quantization {name}: its method states no bound"):
        within_bound(case, method(case, name), Findings([]))


def test_a_config_that_a_method_can_not_take_is_refused_with_the_arithmetic(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*args: Any, **options: Any) -> None:
        raise ConfigError(
            "E-BUILD-QUANTIZATION", "head", "does not divide", found="40 rows", expected="a multiple of 64"
        )

    monkeypatch.setattr(model_case, "build", refusing)
    case._engines.clear()
    properties: list[tuple[str, Any]] = []
    within_bound(case, method(case, "generous"), Findings(properties))
    assert dict(properties)["refused"] == "generous: head: 40 rows, expected a multiple of 64"
