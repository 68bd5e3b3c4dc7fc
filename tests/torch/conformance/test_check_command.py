"""``bestiary check``: names, the table, JSON, exit statuses."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from bestiary.core.cli.main import invoke
from bestiary.core.conformance import model_run
from bestiary.core.conformance.model_run import Check, Report
from bestiary.core.conformance.model_table import table

BROKEN = ("-p", "broken_families", "check")


def test_the_table_and_the_file(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert invoke([*BROKEN, "keys_only", "--json", str(tmp_path / "out.json")]) == 0
    shown = capfd.readouterr().out
    assert "keys_only: broken_families" in shown and "short form" in shown
    assert any(line.split() == ["impossible", "keys", "ok"] for line in shown.splitlines())
    assert "waived: prefill (all configs): other families of this module are for the other checks" in shown
    assert max(map(len, shown.splitlines())) <= 100
    (report,) = json.loads((tmp_path / "out.json").read_text())["conformance"]
    assert report["passed"] and report["model"] == "keys_only" and report["configs"] == ["tiny"]
    assert set(report["environment"]) == {"bestiary", "python", "torch", "transformers", "platform"}
    by_name = {one["check"]: one for one in report["checks"]}
    assert by_name["test_unknown_keys"]["outcome"] == "passed"
    assert by_name["test_export"]["text"].startswith("other families")


def test_a_failure_is_told_and_ends_with_70(capfd: pytest.CaptureFixture[str]) -> None:
    assert invoke([*BROKEN, "trusting_keys_only", "--json", "-"]) == 70
    (report,) = json.loads(capfd.readouterr().out)["conformance"]
    assert not report["passed"]
    (failed,) = [one for one in report["checks"] if one["outcome"] == "failed"]
    assert failed["check"] == "test_impossible_keys"
    assert "intermediate_size = -32 is accepted" in failed["text"]


def _quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ran = []

    def run(model: Any, host: Any, **options: Any) -> Report:
        ran.append(model.name)
        return report(checks=(Check("test_export", "config_number_0", "passed"),))

    monkeypatch.setattr(model_run, "run", run)
    return ran


def test_a_distribution_stands_for_all_of_its_models(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ran = _quick(monkeypatch)
    assert invoke([*BROKEN, "Broken.Families"]) == 0
    assert len(ran) > 10 and "llama" not in ran
    assert invoke(["check", "bestiary-llama"]) == 0
    assert ran[-1] == "llama"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nobody"], 69, r"no plugin of that name brings a model; expected llama (bestiary-llama)"),
        (
            ["about_another"],
            69,
            "names broken_families:windowed, which is about another model; found model = 'windowed'",
        ),
        (["without_a_kit"], 69, "broken_families:Windowed is no subclass of bestiary.testing.ModelConformance"),
        (["keys_only", "--config", "huge"], 2, "--config: unknown config; found huge, expected tiny"),
    ],
)
def test_wrong_names(arguments: list[str], status: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert invoke([*BROKEN, *arguments]) == status
    assert message in capfd.readouterr().err


def test_a_distribution_of_distributions_points_to_them(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    needs = {
        "all-of-them": ["bestiary>=1", "Bestiary_Llama>=0.1; python_version > '3'", "nothing"],
        "pytest": ["pluggy"],
    }
    monkeypatch.setattr(importlib.metadata, "requires", needs.__getitem__)
    assert invoke([*BROKEN, "All_of.them"]) == 69
    assert "(check those that it installs: bestiary check bestiary-llama) [" in capfd.readouterr().err
    assert invoke([*BROKEN, "pytest"]) == 69
    assert "(bestiary plugins shows what is installed" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["", "no-such-thing", "../x"])
def test_what_is_no_distribution_has_a_sentence(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert invoke([*BROKEN, name]) == 69
    assert "(bestiary plugins shows what is installed" in capfd.readouterr().err


def test_without_the_testing_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    assert invoke([*BROKEN, "keys_only"]) == 69
    assert "needs transformers (pip install 'bestiary[testing]')" in capfd.readouterr().err


def test_a_file_that_can_not_be_written(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = _quick(monkeypatch)
    assert invoke([*BROKEN, "keys_only", "--json", str(tmp_path / "no" / "out.json")]) == 73
    assert invoke([*BROKEN, "keys_only", "--json", str(tmp_path)]) == 73
    assert not ran, "it is said before the kit runs"
    assert not list(tmp_path.iterdir())
    assert "can't be written: No such file or directory" in capfd.readouterr().err


def report(**changes: Any) -> Report:
    configs = tuple(f"config_number_{index}" for index in range(20))
    checks = [Check("test_chunked_prefill", config, "passed", 1.0, 3.2e-06, 1e-4, 1, 50) for config in configs] + [
        Check("test_tensor_parallel", configs[0], "refused", text="head: 3 units, expected a multiple of 2 " * 4),
        Check("test_tensor_parallel", configs[1], "failed", text="AssertionError: off by 2\nand more"),
        Check("test_bfloat16", configs[0], "passed", 1.0, 0.91, 1.25),
        Check("test_bfloat16", configs[1], "short"),
    ]
    environment = {"bestiary": "1.0.0", "torch": "2", "platform": "Linux x86_64"}
    said = {
        "model": "m", "plugin": "m", "distribution": "bestiary-m", "version": "1", "architectures": ("M",), "long": False, "gguf": False,
        "reference": "transformers", "environment": environment, "configs": configs, "configs_sha256": "", "checks": tuple(checks),
    }  # fmt: skip
    return Report(**{**said, **changes})


def test_a_wide_table_is_broken_at_a_hundred_columns() -> None:
    lines = table(report()).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("chunked prefill") for line in lines) == 2
    assert "chunked prefill   0.0001 3e-6 3e-6" in table(report())
    assert "0.91    ." in table(report())
    assert "failed: tensor parallel (config_number_1): AssertionError: off by 2" in lines
    assert "numbers: the largest error; 20 ties in 1000 greedy tokens" in lines
    assert not report().passed and lines[-1].startswith("21 passed, 1 failed, 1 refused, 1 left to the long form")
