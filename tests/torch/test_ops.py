"""Every registered op keeps its declaration, and every registered kernel its op: generated from the registry."""

from dataclasses import replace

import pytest
import torch

from bestiary import Kernel, ops
from bestiary.testing import KernelCase, OpCase, check_kernel, check_op, kernel_cases, load_plugins, op_cases

HOST = load_plugins()


@pytest.mark.parametrize("case", op_cases(HOST), ids=str)
def test_declaration(case: OpCase) -> None:
    check_op(case)


@pytest.mark.parametrize("case", kernel_cases(HOST), ids=str)
def test_kernel(case: KernelCase) -> None:
    ran = check_kernel(case)
    assert ran or _elsewhere(case.kernel), "no generated input is one the kernel can run"


def _elsewhere(kernel: Kernel) -> bool:
    """Whether a kernel is for 16-bit weights only, or for other devices."""
    return kernel.name.endswith("widened") or (kernel.op, kernel.name) in (("moe", "grouped"), ("moe", "dense"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["grouped", "dense"])
def test_experts_on_packed_weights(name: str, dtype: torch.dtype) -> None:
    """Kernels for other devices, whose functions a processor has too; grouped products want rows of whole 16 bytes."""
    (kernel,) = (k for k in HOST.kernels("moe") if k.name == name)
    supports = (lambda call: None) if name == "dense" else (lambda call: call.arguments["down"].shape[1] % 8 or None)
    ran = check_kernel(KernelCase(ops.moe, replace(kernel, supports=supports), "cpu", dtype))
    assert ran == {"dense": 6, "grouped": 3}[name]


def forgets_a_row(x, weight, eps, *, out):
    out[1:] = ops.rms_norm.reference(x[1:], weight, eps)


def changes_its_input(x, weight, eps, *, out):
    x.mul_(2)
    out.copy_(ops.rms_norm.reference(x / 2, weight, eps))


def wrong_epsilon(x, weight, eps, *, out):
    out.copy_(ops.rms_norm.reference(x, weight, eps + 1e-2))


def nondeterministic(x, weight, eps, *, out):
    out.copy_(ops.rms_norm.reference(x, weight, eps) * (1 + 1e-7 * torch.rand(x.shape)))


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (forgets_a_row, "times the tolerance|two results"),
        (changes_its_input, "changed its argument x"),
        (wrong_epsilon, "times the tolerance"),
        (nondeterministic, "two results"),
    ],
)
def test_broken_kernels_are_caught(broken, complaint, monkeypatch) -> None:
    kernel = Kernel(op="rms_norm", name="broken", run="nowhere:nothing")
    monkeypatch.setattr("bestiary.testing.load_kernel", lambda kernel, op: broken)
    with pytest.raises(AssertionError, match=complaint):
        check_kernel(KernelCase(ops.rms_norm, kernel, "cpu", torch.float32))


def test_a_declaration_must_say_what_it_returns() -> None:
    from bestiary import PluginError

    with pytest.raises(PluginError, match="does not say how many tensors"):

        @ops.op(inputs=lambda generator, dtype: iter(()))
        def unannotated(x):
            return x
