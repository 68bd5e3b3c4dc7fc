"""Kernels with one fault each, and the check that finds it. Those that take the process with them run in a child."""

import dataclasses
import json
import os
import re
from pathlib import Path
from textwrap import indent

import documents
import faulty_kernels
import pytest
import torch

from bestiary import Kernel, PluginError
from bestiary.core import isolated
from bestiary.core.cli.main import invoke
from bestiary.core.conformance.kernel_cases import ROWS
from bestiary.core.conformance.kernel_check import KernelCheck
from bestiary.core.conformance.kernel_memory import AROUND_INPUTS, Banded
from bestiary.core.conformance.kernel_report import CHECKS, HEADINGS, Finding, KernelReport, remarks, rows
from bestiary.core.conformance.kernel_select import select
from bestiary.core.conformance.kernel_worker import KernelChecker
from bestiary.core.ops.declare import Tolerance
from bestiary.core.program.calls import load_op
from bestiary.core.program.compare import Deviation, deviation
from bestiary.testing import KernelCase, KernelConformance, check_kernel, kernel_cases, load_plugins

HOST = load_plugins(faulty_kernels)


def case(name: str) -> KernelCase:
    (found,) = [one for one in kernel_cases(HOST, ["faulty_kernels"]) if one.kernel.name == name]
    return found


def checked(name: str) -> KernelReport:
    with torch.no_grad():
        return KernelCheck(case(name)).report()


@pytest.mark.parametrize(
    ("name", "check", "said"),
    [
        ("short", "fill", r"input 0 \(float32\[3, 5\], float32\[5\]\): left 5 of 15 elements of out unwritten, first \[2, 0\]"),
        ("beyond", "bands", r"wrote beside out: 1 element, up to 1 after its end"),
        ("before", "bands", r"wrote beside out: 1 element, the first 2 before its beginning"),
        ("between", "bands", r"wrote beside its argument x: 1 element between its rows"),
        ("spoils", "inputs", r"changed its argument weight at \[0\]"),
        ("off", "tolerance", r"an error 2 times the tolerance at \[\d, \d\] \(at most 0.0002 absolute, [\d.e-]+ relative\)"),
        ("fickle", "determinism", r"gave two results for one input"),
        ("consumes", "inputs", r"changed what pack made of weight, which the next call reads"),
        ("counts", "determinism", r"input 0 \(.*\): called again on what it packed, it gave another result"),
        ("tires", "determinism", r"after many calls on what it packed: an error"),
        ("social", "invariance", r"row 0 is another alone than at its place among 3"),
        ("tiles", "invariance", r"row \d is another at place 0 of 257 rows than at its place among 3"),
        ("blocks", "invariance", r"row \d is another at place 0 of 17 rows than at its place among 3"),
        ("reaches", "bands", r"with 17 rows \(.*\): wrote beside out: 1 element, up to 1 after its end"),
        ("remembers", "values", r"input 0 \(.*\): with other values in the same memory: an error"),
        ("converts", "values", r"input 0 \(.*\): with other values in the same memory: an error"),
        ("exits", "supports", r"supports said yes, and it raised SystemExit: 0"),
        ("raises", "supports", r"supports said yes, and it raised RuntimeError: no code for this architecture"),
        ("outside", "supports", r"supports said yes, and it raised IndexError"),
        ("disturbs", "state", r"changed the default dtype \(from torch.float32 to torch.float64\), whether gradients .*, the number of threads .*, which the whole process shares"),
        ("draws", "state", r"changed the state of a random generator, which"),
        ("returns", "result", r"returned a view of its argument x; a kernel fills out and returns nothing"),
        ("replaces", "result", r"gave out another shape, dtype or memory"),
        ("keeps", "references", r"something keeps its argument weight after the call"),
        ("spends", "workspace", r"it states 8 bytes and allocates 60"),
        ("misnamed", "load", r"its parameters are not the op's; found \(x, scale, out\), expected \(x, weight, out\)"),
        ("absent", "load", r"faulty_kernels has no attribute 'nothing'"),
        ("refuses", "supports", r"its supports raised KeyError: 'shape'"),
        ("answers_yes", "supports", r"its supports must answer None for yes, else the reason why not; found True"),
        ("strays", "bands", r"changed cache at \[0, 0\], which the reference leaves alone"),
        ("overruns", "bands", r"wrote beside its argument cache: 1 element, up to 1 after its end"),
        ("blunders", "tolerance", r"an error 2 times the tolerance at"),
        ("mingles", "invariance", r"what 1 of the rows leave in cache is another than what all 3 leave there"),
    ],
)  # fmt: skip
def test_a_fault_is_found_by_its_check_and_by_no_other(name: str, check: str, said: str) -> None:
    report = checked(name)
    assert report.verdict == "fail"
    (finding,) = report.findings
    assert finding.check == check
    assert re.search(said, str(finding)), str(finding)


def test_a_right_kernel_passes_all_checks_and_on_batches_that_its_op_gives_no_input_for() -> None:
    report = checked("right")
    assert (report.verdict, report.findings, report.worst) == ("pass", (), 0.0)
    assert report.ran == 2 * (1 + len(ROWS)) and not report.declined  # two inputs, each also with so many rows
    assert report.speed is not None and report.speed > 0
    assert set(report.done) == set(CHECKS) - {"invariance", "workspace", "graph", "declaration"}


def test_a_kernel_gets_constants_as_it_packed_them() -> None:
    assert (checked("packed").verdict, checked("packed").findings) == ("pass", ())


def test_a_kernel_that_lacks_what_it_requires_is_declined_which_is_no_pass() -> None:
    report = checked("unmet")
    assert (report.verdict, report.declined) == ("declined", {"no-such-package is not installed": 1})


def test_a_kernel_that_runs_empty_calls_only_is_declined_which_is_no_pass() -> None:
    report = checked("idle")
    assert (report.verdict, report.ran, report.empty) == ("declined", 2, 2)
    assert any(line.endswith("ran only empty calls") for line in remarks([report]))
    assert not any(line.endswith("ran only empty calls") for line in remarks([checked("right"), checked("unmet")]))
    assert check_kernel(case("idle")) == 0


def test_the_table_says_how_much_of_a_pass_was_seen() -> None:
    place = HEADINGS.index("verdict")
    some = KernelReport("o", "k", "d", "cpu", "float32", ran=2, declined={"not my shape": 30, "too wide": 4})
    none = dataclasses.replace(some, ran=0)
    assert [row[place] for row in rows([some, none])] == ["pass, 2 of 36 calls", "declined"]
    assert [row[place] for row in rows([dataclasses.replace(some, declined={})])] == ["pass"]


def test_the_table_says_where_no_workspace_is_stated() -> None:
    place = HEADINGS.index("workspace")
    assert [row[place] for row in rows([checked("right"), checked("spends")])] == ["not stated", "NO"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4),
        torch.arange(24.0).view(3, 8)[:, 1:5],
        torch.arange(12.0).view(4, 3).t(),
        torch.arange(4.0).expand(3, 4),
        torch.empty(0, 4),
        torch.tensor(3),
        torch.tensor([[True, False]]),
    ],
    ids=["whole", "slice", "transposed", "shared", "empty", "number", "bool"],
)
def test_a_banded_copy_has_the_values_the_strides_and_the_alignment(tensor: torch.Tensor) -> None:
    copy = Banded.copy(tensor, around=AROUND_INPUTS)
    assert torch.equal(copy.tensor, tensor) and copy.tensor.stride() == tensor.stride()
    assert copy.tensor.data_ptr() % 64 == tensor.data_ptr() % 64
    assert copy.change_inside() is None and copy.change_outside() is None
    if tensor.numel():
        last = tuple(size - 1 for size in tensor.shape)
        copy.tensor[last] = not tensor[last] if tensor.dtype is torch.bool else tensor[last] + 1
        assert copy.change_inside() is not None and copy.change_outside() is None


def test_a_deviation_is_told_in_units_of_the_tolerance_and_without() -> None:
    tolerances = {"float32": Tolerance(0.1, 0.01)}
    wanted = torch.tensor([[0.0, 10.0], [100.0, -1.0]])
    found = wanted + torch.tensor([[0.05, 0.1], [-3.3, 0.0]])
    differs = deviation(found, wanted, tolerances)
    assert (differs.excess, differs.index) == (pytest.approx(3.0, rel=1e-4), (1, 0))
    assert (differs.absolute, differs.relative) == (pytest.approx(3.3, rel=1e-4), float("inf"))
    assert deviation(wanted, wanted, tolerances) == Deviation()
    nan = torch.tensor([[0.0, float("nan")], [100.0, -1.0]])
    assert deviation(nan, wanted, tolerances).excess == float("inf")
    assert deviation(nan, wanted, tolerances).index == (0, 1)
    assert deviation(torch.tensor([1, 2]), torch.tensor([1, 3]), {}).excess == float("inf")
    assert deviation(wanted[0], wanted, tolerances).excess == float("inf")


def test_what_a_kernel_changes_of_the_process_is_undone() -> None:
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state()
    for name in ("disturbs", "draws"):
        checked(name)
    after = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state()
    assert before[:-1] == after[:-1] and torch.equal(before[-1], after[-1])


@pytest.mark.parametrize("op", ["linear", "logits", "gated_activation", "paged_attention"])
def test_ordinary_kernels_would_fail_if_they_claimed_to_be_batch_invariant(op: str) -> None:
    claims = dataclasses.replace(HOST.kernel(op, "torch"), batch_invariant=True)
    report = KernelCheck(KernelCase(load_op(op, HOST), claims, "cpu", torch.float32)).report()
    (finding,) = report.findings
    assert finding.check == "invariance" and report.ran > 0


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("rms_norm", "norm_without_eps"),
        ("rms_norm", "norm_of_a_fixed_eps"),
        ("rms_norm", "norm_of_a_misplaced_eps"),
        ("rms_norm", "norm_that_divides_by_zero"),
        ("rms_norm", "norm_in_half"),
        ("moe_route", "route_without_a_shift"),
        ("moe_route", "route_that_always_renormalizes"),
        ("paged_attention", "attention_of_its_own_scale"),
        ("paged_attention", "attention_of_one_tile_of_keys"),
        ("paged_attention", "attention_of_one_tile_of_queries"),
        ("paged_attention", "attention_in_blocks_of_four"),
        ("paged_attention", "attention_in_no_blocks_of_one"),
        ("paged_attention", "attention_of_a_short_window"),
        ("rms_norm", "norm_of_a_narrow_model"),
        ("linear", "product_of_few_features"),
        ("linear", "product_into_few_features"),
        ("linear", "product_of_a_tail"),
    ],
)
def test_a_kernel_that_overlooks_an_argument_rare_values_or_a_models_sizes_fails(op: str, name: str) -> None:
    kernel = Kernel(op=op, name=name, run=f"careless_kernels:{name}")
    with torch.no_grad():
        report = KernelCheck(KernelCase(load_op(op, HOST), kernel, "cpu", torch.float32)).report()
    assert {finding.check for finding in report.findings} & {"tolerance", "fill"}, report


def test_the_documented_checks_are_those_there_are() -> None:
    page = documents.ROOT / "docs" / "kernels-and-ops.md"
    assert [row[0] for row in documents.rows(page, "Checking kernels")] == list(CHECKS)


def test_a_crash_is_a_result_and_the_next_kernel_is_checked() -> None:
    with KernelChecker(HOST) as checker:
        crashed = checker.kernel(case("segfaults"))
        after = checker.kernel(case("chatters"))
        faulty = checker.kernel(case("short"))
    (finding,) = crashed.findings
    assert (crashed.verdict, finding.check) == ("fail", "crash")
    assert finding.case == "input 0 (float32[3, 5], float32[5])"
    assert "the process was killed by SIGSEGV" in finding.message
    assert "in segfaults" in finding.message  # where Python was
    assert (after.verdict, after.findings, after.ran) == ("pass", (), 2 * (1 + len(ROWS)))
    assert faulty.findings == checked("short").findings


def test_a_declaration_that_crashes_is_a_result_and_the_other_kernels_are_checked(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert invoke(["-p", "crashing_ops", "check-kernel", "crashing_ops", "--device", "cpu", "--json", "-"]) == 69
    reports = json.loads(capfd.readouterr().out)["reports"]
    crashed, *others = [KernelReport.from_dict(one) for one in reports]
    (finding,) = crashed.findings
    assert (str(crashed), finding.check) == ("crashing::boom=reference-cpu", "crash")
    assert finding.case == "importing its declaration" and "the process was killed by SIGSEGV" in finding.message
    assert {f"{one.op}={one.kernel} {one.verdict}" for one in others} == {"mul=right pass"}


def test_a_crash_tells_where_the_kernel_was_and_nothing_of_the_kit() -> None:
    stack = [
        "Fatal Python error: Segmentation fault",
        "",
        "Current thread 0x00007fd4c6e44b80 (most recent call first):",
        '  File "/plugins/norms.py", line 15 in inner',
        '  File "/plugins/norms.py", line 20 in run',
        f'  File "{isolated.__file__.replace("isolated.py", "conformance/kernel_run.py")}", line 87 in launch',
        f'  File "{isolated.__file__.replace("isolated.py", "isolated_main.py")}", line 40 in main',
        '  File "<frozen runpy>", line 88 in _run_code',
    ]
    words = isolated.Died("was killed by SIGSEGV", "", "\n".join(stack)).last_words
    assert words == ["Current thread (most recent call first):", *stack[3:5]]
    found = Finding("crash", "input 0", "\n    ".join(["the process was killed", *words]))
    reports = [KernelReport("o", "k", "d", "cpu", dtype, findings=(found,)) for dtype in ("float32", "float16")]
    told = "\n".join(remarks(reports))
    assert told.count("the process was killed") == 2 and told.count("in inner") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--timeout", "-1"], 2, "--timeout: is no time; found -1, expected seconds above 0"),
        (["--timeout", "nan"], 2, "--timeout: is no time; found nan"),
        (["--json", "no/such/folder/out.json"], 73, "out.json: can't be written: No such file or directory"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_checked(
    arguments: list[str], status: int, message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelChecker, "_report", lambda self, job: pytest.fail("it was checked"))
    assert invoke(["-p", "faulty_kernels", "check-kernel", "faulty_kernels", *arguments]) == status
    assert message in capfd.readouterr().err


def test_what_a_distribution_brings_is_found_by_its_names() -> None:
    own = select(HOST, "bestiary")
    assert {fusion.name for fusion in own.fusions} == {
        "residual_norm", "rotary_cache", "rotary_quantized_cache",
        "quantized_linear", "quantized_logits", "quantized_embedding", "quantized_moe",
    }  # fmt: skip
    assert len(own.registered) == len([one for one in HOST.kernels() if not one.op.startswith("faulty::")])
    assert [str(case) for case in select(HOST, "faulty_kernels").ops] == ["faulty::scale", "faulty::store"]
    assert {kernel.name for kernel in own.only("linear").registered} >= {"torch", "invariant"}
    with pytest.raises(PluginError, match=r"bestary: is not installed; expected one of bestiary, .*faulty_kernels"):
        select(HOST, "bestary")
    with pytest.raises(PluginError, match=r"bestiary-llama: brings no kernel and no op"):
        select(HOST, "bestiary-llama")
    with pytest.raises(
        PluginError, match=r"has no kernel of this op; found linear, expected faulty::scale, faulty::store"
    ):
        select(HOST, "faulty_kernels").only("linear")


def test_a_waiver_needs_a_reason_and_a_check() -> None:
    with pytest.raises(TypeError, match="determinism needs a reason in words, and has ''"):
        type(KernelConformance)("Silent", (KernelConformance,), {"waived": {"determinism": ""}})
    with pytest.raises(TypeError, match="there is no check 'determinsm'"):
        type(KernelConformance)(
            "Misspelt", (KernelConformance,), {"waived": {"determinsm": "sums are made with atomics"}}
        )
    with pytest.raises(TypeError, match=r"Overriding\.test_kernel: a check is overridden without a written reason"):
        type(KernelConformance)("Overriding", (KernelConformance,), {"test_kernel": None})
    with pytest.raises(TypeError, match="Empty needs a distribution or a plugin"):
        type(KernelConformance)("Empty", (KernelConformance,), {})._selection()
    for name in ("checker", "setup_method", "__init__"):
        with pytest.raises(TypeError, match=rf"Deaf\.{name}: belongs to KernelConformance or pytest"):
            type(KernelConformance)("Deaf", (KernelConformance,), {name: None})
        mixin = type("Mixin", (), {name: None})
        if name != "checker":
            with pytest.raises(TypeError, match=rf"Deaf\.{name}: belongs to KernelConformance or pytest"):
                type(KernelConformance)("Deaf", (KernelConformance, mixin), {})
    with pytest.raises(TypeError, match="Other: its metaclass Meta could change what the kit sees of it"):
        type("Meta", (type(KernelConformance),), {})("Other", (KernelConformance,), {})


FIXTURES = {
    "a checker of its own": (
        "@pytest.fixture(name='checker')\ndef of_its_own(self):\n    return Lenient()",
        "test_op: a fixture of its own replaces the kit's 'checker'",
    ),
    "a lenient checker": (
        "@pytest.fixture(autouse=True)\ndef lenient(self, checker):\n    checker.op = lambda *args: RIGHT",
        "test_op: something replaced checker.op while it was set up",
    ),
    "another function": (
        "@pytest.fixture(autouse=True)\ndef another(self, request):\n    request.node.obj = lambda **given: None",
        "test_op: something replaced the check while it was set up",
    ),
    "a lenient conclusion": (
        "@pytest.fixture(autouse=True)\ndef lenient(self, monkeypatch):\n"
        "    monkeypatch.setattr('bestiary.core.conformance.kernel_conformance._conclude', lambda report: None)",
        "test_op: something replaced bestiary.core.conformance.kernel_conformance._conclude of the kit",
    ),
}


@pytest.mark.parametrize("way", FIXTURES)
def test_a_fixture_that_would_lose_a_check_fails_it(way: str, tmp_path: Path) -> None:
    body, complaint = FIXTURES[way]
    head = "import pytest\nfrom bestiary.testing import KernelConformance\nclass Lenient: pass\nRIGHT = Lenient()\n"
    kit = f"class TestFaulty(KernelConformance):\n    plugin = 'faulty_kernels'\n{indent(body, '    ')}\n"
    (tmp_path / f"test_{way.replace(' ', '_')}.py").write_text(head + kit)
    told: list[pytest.TestReport] = []

    class Recorder:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            told.append(report)

    quiet = ["-p", "no:cacheprovider", "-p", "no:terminal", "-c", os.devnull, "-k", "test_op", str(tmp_path)]
    pytest.main(quiet, plugins=[Recorder()])
    failed = [str(one.longrepr) for one in told if one.failed]
    assert len(failed) == 2 and all(complaint in text for text in failed), failed  # of two ops


def test_a_plugin_without_ops_has_none_to_check(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    head = "from bestiary.testing import KernelConformance\nclass TestKernels(KernelConformance):\n"
    (tmp_path / "test_without_ops.py").write_text(f"{head}    plugin = 'batch_kernels'\n")
    assert pytest.main(["-p", "no:cacheprovider", "-c", os.devnull, "-k", "test_op", str(tmp_path)]) == 0
    assert "1 skipped" in capfd.readouterr().out


@pytest.mark.parametrize("devices", [(), [], "cpu", None], ids=repr)
def test_a_class_without_devices_is_refused(devices: object) -> None:
    with pytest.raises(TypeError, match=r"Nowhere\.devices: needs at least one, like \('cpu',\), and has"):
        type(KernelConformance)("Nowhere", (KernelConformance,), {"devices": devices})


def test_a_class_is_not_changed_after_it_is_made() -> None:
    made = type(KernelConformance)("Made", (KernelConformance,), {"plugin": faulty_kernels})
    for name, value in (("test_kernel", lambda self: None), ("devices", ()), ("waived", {}), ("test_fusions", None)):
        for one in (made, KernelConformance):
            with pytest.raises(
                TypeError, match=rf"{one.__name__}\.{name}: a class of the conformance kit is not changed"
            ):
                setattr(one, name, value)
            with pytest.raises(TypeError, match="is not changed after it is made"):
                delattr(one, name)
    made.pytestmark = [pytest.mark.usefixtures()]  # pytest's own; a mark that skips is refused when tests are made


def test_what_is_waived_no_longer_fails_and_is_told_with_its_reason() -> None:
    with torch.no_grad():
        report = KernelCheck(case("fickle"), waived={"determinism": "sums are made with atomics"}).report()
    assert (report.verdict, report.answer("determinism")) == ("pass", "NO (waived)")
    assert any("determinism is waived: sums are made with atomics" in line for line in remarks([report]))
    assert KernelReport.from_dict(report.as_dict()) == report
