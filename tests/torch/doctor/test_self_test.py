"""The self-test names the kernel that is at fault, whatever the fault does to its process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tiny import make_engine, make_hf

from bestiary.core.doctor import self_test as tested
from bestiary.core.doctor import trial_calls
from bestiary.core.doctor.findings import Finding
from bestiary.core.doctor.self_test import self_test
from bestiary.core.doctor.trial_calls import Subject, TrialCall, calls_of, in_order
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.core.program.shapes import Sizes

PLUGIN = '''
"""An op with kernels that are right, wrong, and deadly."""

import ctypes
import time

import torch

from bestiary import Kernel, Op, hookimpl
from bestiary.ops import normal, op


@op(name="doctored::twice", inputs=lambda generator, dtype: iter([(normal(generator, 3, 5, dtype=dtype),)]))
def twice(x: torch.Tensor) -> torch.Tensor:
    """2x"""
    return x * 2


def right(x, *, out):
    torch.mul(x, 2, out=out)


def wrong(x, *, out):
    torch.mul(x, 2.5, out=out)


def crashes(x, *, out):
    ctypes.string_at(0)


def hangs(x, *, out):
    time.sleep(1000)


@hookimpl
def bestiary_register_ops(register):
    register(Op(name="doctored::twice", declaration="doctored_kernels:twice"))


@hookimpl
def bestiary_register_kernels(register):
    for name in NAMES:
        register(Kernel(op="doctored::twice", name=name, run=f"doctored_kernels:{name}"))
'''


def of_level(findings: Iterable[Finding], level: str) -> dict[str, str]:
    return {one.subject: one.text for one in findings if one.level == level}


@pytest.fixture
def tested_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The findings of a self-test with kernels of these names, the typical calls in one dtype."""

    def run(*names: str, **limits: float) -> list[Finding]:
        (tmp_path / "doctored_kernels.py").write_text(PLUGIN.replace("NAMES", repr(names)))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "doctored_kernels", raising=False)
        monkeypatch.setenv("BESTIARY_PLUGINS", "")
        monkeypatch.setattr(tested, "_TYPICAL", ("float32",))
        monkeypatch.setattr(
            trial_calls, "in_order", lambda calls: [call for call in in_order(calls) if call.nbytes < 2**16]
        )
        host = PluginHost.load(plugins=["doctored_kernels"])
        return list(self_test(lambda: host, **limits))

    return run


def test_wrong_and_deadly_kernels_are_found_and_the_others_go_on(tested_here: Any) -> None:
    found = tested_here("right", "wrong", "crashes", budget=60)
    errors = of_level(found, "error")
    assert set(errors) == {"doctored::twice=wrong", "doctored::twice=crashes"}
    wrong, crashes = errors["doctored::twice=wrong"], errors["doctored::twice=crashes"]
    assert "on cpu: differs from the op's reference" in wrong and "--kernel doctored::twice=NAME" in wrong
    assert "was killed by SIGSEGV" in crashes and "in crashes" in crashes
    right = of_level(found, "ok")
    assert right["doctored::twice"] == "right right in 1 call, exactly"
    assert {"rope", "rms_norm", "moe_route"} <= right.keys()
    assert not of_level(found, "note"), "nothing was left out"


@pytest.mark.slow
def test_a_kernel_that_hangs_is_found(tested_here: Any) -> None:
    found = tested_here("hangs", budget=60, silence=2)
    (text,) = of_level(found, "error").values()
    assert "gave no sign of life for 2 s" in text and "in hangs" in text
    assert "rms_norm" in of_level(found, "ok")


def test_what_there_was_no_time_for_is_said(tested_here: Any) -> None:
    found = tested_here("right", budget=-1)
    assert of_level(found, "ok")["self-test"].startswith("0 of ")
    left = of_level(found, "note")["left out"]
    assert left.startswith("no time was left for ") and "rms_norm=torch" in left


def test_calls_that_need_too_much_memory_are_left_out(tested_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.core.device.free_memory", lambda device: 4)
    found = tested_here("right")
    left = of_level(found, "note")["left out"]
    assert left.startswith("too large for the free memory are ") and "doctored::twice=right" in left


def test_each_kernel_is_run_once_before_any_a_second_time() -> None:
    def call(kernel: str, nbytes: int, first: bool = True) -> TrialCall:
        return TrialCall(Subject(None, "{}"), "op", kernel, "cpu", "float32", None, 0, Sizes(1, 1, 1), 0, nbytes, first)

    large, small, other = call("a", 9), call("a", 1), call("b", 5, first=False)
    assert in_order([large, other, small]) == [small, other, large]


def test_plugins_that_no_other_process_can_load_are_a_note() -> None:
    class Here:
        pass

    host = PluginHost.load(plugins=[Here()])
    (found,) = self_test(lambda: host)
    assert found.level == "note" and "is not made" in found.text


def test_an_engine_is_tested_with_the_kernels_of_its_plan(tmp_path: Path) -> None:
    host = PluginHost.load()
    options = BuildOptions(
        device="cpu", max_batch_size=2, max_num_tokens=8, dtype="bfloat16", kernels={"linear": "widened"}
    )
    make_engine(tmp_path, host, options, num_hidden_layers=1)
    of_engine = {(call.op, call.kernel) for call in calls_of(Subject(str(tmp_path / "engine"), "{}"), host)}
    assert ("linear", "widened") in of_engine and ("linear", "torch") not in of_engine
    of_source = {
        (call.op, call.kernel) for call in calls_of(Subject(str(tmp_path / "hf"), '{"dtype": "bfloat16"}'), host)
    }
    assert {("linear", "widened"), ("linear", "torch")} <= of_source
    assert not any(op == "moe" for op, _ in of_source), "the model has none"


@pytest.mark.slow
def test_a_models_own_calls_are_run(tmp_path: Path) -> None:
    make_hf(tmp_path / "hf", num_hidden_layers=1)
    host = PluginHost.load()
    found = list(self_test(lambda: host, str(tmp_path / "hf"), {"device": "cpu"}, budget=60))
    right = of_level(found, "ok")
    assert {"linear", "paged_attention", "logits"} <= right.keys() and "moe" not in right
    assert not of_level(found, "error") and not of_level(found, "note")
