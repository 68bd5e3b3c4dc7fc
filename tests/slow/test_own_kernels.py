"""The SDK's own kernels in every dtype, as a plugin checks its kernels; and what becomes of faulty ones on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import faulty_kernels
import pytest

from bestiary.core.cli.main import invoke
from bestiary.core.conformance.kernel_worker import KernelChecker
from bestiary.testing import KernelConformance, kernel_cases, load_plugins

pytestmark = pytest.mark.slow


class TestOwnKernels(KernelConformance):
    distribution = "bestiary"


def test_a_kernel_that_exits_or_hangs_is_a_result() -> None:
    host = load_plugins(faulty_kernels)
    cases = {case.kernel.name: case for case in kernel_cases(host, ["faulty_kernels"])}
    with KernelChecker(host, timeout=5) as checker:
        reports = {name: checker.kernel(cases[name]) for name in ("leaves", "hangs", "right")}
    assert [reports[name].verdict for name in reports] == ["fail", "fail", "pass"]
    (left,), (hung,) = reports["leaves"].findings, reports["hangs"].findings
    assert left.message == "the process exited with status 0 before it was done"
    assert hung.message.startswith("the process gave no sign of life for 5 s") and "in hangs" in hung.message
    assert left.case == hung.case == "input 0 (float32[3, 5], float32[5])"


def test_the_command_prints_the_table_and_fails_with_the_plugin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["-p", "faulty_kernels", "check-kernel", "faulty_kernels", "--timeout", "5"]
    assert invoke([*line, "--json", str(tmp_path / "out.json")]) == 69
    shown = capsys.readouterr()
    assert "faulty_kernels: 36 of 44 reports fail" in shown.err
    rows = {row.split()[0]: row for row in shown.out.splitlines() if row.startswith("faulty::") and ": " not in row}
    assert len(rows) == 44
    assert rows["faulty::scale=right"].split()[-1] == "pass" and rows["faulty::scale=short"].split()[-1] == "fail"
    assert "claimed, NO" in rows["faulty::scale=social"]
    reports = json.loads((tmp_path / "out.json").read_text())["reports"]
    verdicts = {report["kernel"]: report["verdict"] for report in reports}
    assert {name for name, verdict in verdicts.items() if verdict != "fail"} == {
        "reference",
        "right",
        "chatters",
        "packed",
        "waits",
        "unmet",
        "idle",
    }
    off = next(report for report in reports if report["kernel"] == "off")
    assert off["worst"] == pytest.approx(2, rel=0.01) and off["findings"][0]["check"] == "tolerance"


PLUGIN_TEST = """
import faulty_kernels
from bestiary.testing import KernelConformance


class TestFaulty(KernelConformance):
    plugin = faulty_kernels
    timeout = 5
    waived = {"faulty::scale=fickle:determinism": "sums are made with atomics"}
"""


def run_tests(directory: Path, text: str) -> tuple[int, str]:
    """What pytest says of a test module in a process of its own."""
    (directory / "test_plugin.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "test_plugin.py"]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_a_plugin_needs_nothing_but_its_name(tmp_path: Path) -> None:
    status, shown = run_tests(tmp_path, PLUGIN_TEST)
    assert status == 1
    assert "35 failed, 7 passed, 2 skipped, 1 xfailed" in shown
    outcomes = dict(line.split()[1::-1] for line in shown.splitlines() if line.startswith(("FAILED", "PASSED")))
    test = "test_plugin.py::TestFaulty::test_kernel[faulty::scale={}-cpu-float32]"
    named = {name: outcomes[test.format(name)] for name in ("segfaults", "hangs", "leaves", "short", "right")}
    assert named == {**dict.fromkeys(("segfaults", "hangs", "leaves", "short"), "FAILED"), "right": "PASSED"}
    assert "determinism is waived: sums are made with atomics" in shown
    assert "declined 1: no-such-package is not installed" in shown


def test_a_distribution_that_is_not_there_is_no_pass(tmp_path: Path) -> None:
    status, shown = run_tests(
        tmp_path, PLUGIN_TEST.replace("plugin = faulty_kernels", "distribution = 'bestiary-fast'")
    )
    assert status not in (0, 5)
    assert "bestiary-fast: is not installed; expected one of bestiary" in shown
