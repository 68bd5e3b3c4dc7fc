"""The pytest side: a class for a plugin's kernels, and functions for one case in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

import pytest
import torch

from bestiary.core import device
from bestiary.core.conformance.guard import Guard, give, parts
from bestiary.core.conformance.kernel_cases import KernelCase, OpCase, load_plugins
from bestiary.core.conformance.kernel_check import KernelCheck
from bestiary.core.conformance.kernel_report import CHECKS, KernelReport, remarks
from bestiary.core.conformance.kernel_select import Selection, select
from bestiary.core.conformance.kernel_worker import TIMEOUT, KernelChecker, op_report
from bestiary.core.conformance.waivers import Sealed, refuse_marks, refuse_silent

_SETTINGS = ("distribution", "plugin", "waived", "devices", "timeout")
_CHECKER = pytest.StashKey[KernelChecker]()


def check_op(case: OpCase) -> None:
    """The declaration keeps its word: documented, and reference and fake agree on shapes, dtypes and what is changed.

    Raises:
        AssertionError: it does not; the message says how.
    """
    _assert_right(op_report(case))


def check_kernel(case: KernelCase) -> int:
    """A kernel against its op's declaration, in this process; how many calls it ran, empty ones aside.

    The checks are those of :class:`KernelConformance`, which also survives a crash.

    Raises:
        AssertionError: one fails; the message says how.
    """
    with torch.no_grad():
        report = KernelCheck(case).report()
    _assert_right(report)
    return report.ran - report.empty


class KernelConformance(metaclass=Sealed):
    """Checks each op, kernel and fusion of a plugin, kernels in each dtype of their op on each device that is here.

    A subclass in a test module gives ``distribution`` or ``plugin`` and needs nothing else. Kernels run in a child process.

    Attributes:
        distribution: an installed one.
        plugin: or a module, or its name, that is not installed.
        waived: check, or ``op=kernel:check`` → a sentence that says why it is not held. A ``test_…`` method that a
            subclass overrides needs one too.
        devices: where to check, one at least.
        timeout: seconds without a sign of life after which a kernel counts as hanging.
    """

    distribution: ClassVar[str] = ""
    plugin: ClassVar[ModuleType | str | None] = None
    waived: ClassVar[Mapping[str, str]] = {}
    devices: ClassVar[Sequence[str]] = device.available()
    timeout: ClassVar[float] = TIMEOUT

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        of_one = [name for name in cls.waived if "=" in name and name.rpartition(":")[2] in CHECKS]
        refuse_silent(cls, KernelConformance, _SETTINGS, cls.waived, {*CHECKS, *of_one})
        type.__setattr__(cls, "waived", MappingProxyType(dict(cls.waived)))
        if not isinstance(cls.devices, tuple | list) or not cls.devices:
            raise TypeError(f"{cls.__name__}.devices: needs at least one, like ('cpu',), and has {cls.devices!r}")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize the tests by what the plugin registers."""
        refuse_marks(type(self), list(metafunc.definition.iter_markers()), metafunc.definition.name)
        guard().register(metafunc.config)
        chosen = self._selection()
        if "op_case" in metafunc.fixturenames:
            metafunc.parametrize("op_case", chosen.ops, ids=str)
        if "kernel_case" in metafunc.fixturenames:
            metafunc.parametrize("kernel_case", chosen.kernels(self.devices), ids=str)

    @pytest.fixture
    def checker(self, request: pytest.FixtureRequest) -> KernelChecker:
        """The child process of the class's tests."""
        node = request.node.getparent(pytest.Class)
        if _CHECKER not in node.stash:
            node.stash[_CHECKER] = made = KernelChecker(self._selection().host, timeout=self.timeout)
            node.addfinalizer(made.close)
        give(request.node, "checker", node.stash[_CHECKER])
        return node.stash[_CHECKER]

    def test_op(self, op_case: OpCase, checker: KernelChecker) -> None:
        """An op that the plugin brings keeps its declaration."""
        _conclude(checker.op(op_case, self._waivers(f"{op_case.op.name}=reference")))

    def test_kernel(self, kernel_case: KernelCase, checker: KernelChecker) -> None:
        """A kernel keeps its op's declaration."""
        label = f"{kernel_case.op.name}={kernel_case.kernel.name}"
        _conclude(checker.kernel(kernel_case, self._waivers(label)))

    def test_fusions(self) -> None:
        """The reference of each fused op is a pattern."""
        self._selection().check_fusions()

    @classmethod
    def _selection(cls) -> Selection:
        if cls.plugin is None and not cls.distribution:
            raise TypeError(f"{cls.__name__} needs a distribution or a plugin to check")
        return _selected(cls.plugin, cls.distribution)

    def _waivers(self, label: str) -> dict[str, str]:
        """What is waived for one kernel: check → reason."""
        everywhere = {name: reason for name, reason in self.waived.items() if name in CHECKS}
        own = {name.rpartition(":"): reason for name, reason in self.waived.items() if "=" in name}
        return everywhere | {check: reason for (kernel, _, check), reason in own.items() if kernel == label}


def guard() -> Guard:
    """What watches a run of pytest for checks that are lost."""
    return Guard(KernelConformance, ("checker",), _answered, _PARTS, ("test_op", "test_kernel"))


def _answered(item: Any) -> int | None:
    checker = item.funcargs.get("checker")
    return None if checker is None else checker.answered


@lru_cache(maxsize=8)
def _selected(plugin: ModuleType | str | None, distribution: str) -> Selection:
    if plugin is None:
        return select(load_plugins(), distribution)
    return select(load_plugins(plugin), plugin.__name__ if isinstance(plugin, ModuleType) else plugin)


def _conclude(report: KernelReport) -> None:
    """Pass, fail or skip the running test, as the report has it; what was waived is a test that may fail."""
    lines = "\n".join(remarks([report]))
    if report.verdict == "fail":
        pytest.fail(lines, pytrace=False)
    if report.findings:
        pytest.xfail(lines)
    if report.verdict == "declined":
        pytest.skip(lines)


def _assert_right(report: KernelReport) -> None:
    assert report.verdict != "fail", "\n".join(remarks([report]))


_PARTS = parts()
