"""Every registered op keeps its declaration, and every registered kernel its op: generated from the registry.

All dtypes, in a process of their own, are in tests/slow/test_own_kernels.py.
"""

from dataclasses import replace

import pytest
import torch

from bestiary import Kernel, ops
from bestiary.core.conformance.kernel_cases import Batch, large
from bestiary.testing import KernelCase, OpCase, check_kernel, check_op, kernel_cases, load_plugins, op_cases

HOST = load_plugins()
# The kernels that take seconds in each dtype: test_invariant_kernels.py has the plain one for the others.
CASES = [
    case
    for case in kernel_cases(HOST)
    if case.dtype is torch.float32
    or (
        case.dtype is torch.bfloat16
        and not (case.op.name.endswith("paged_attention") and case.kernel.name == "invariant")
    )
]


@pytest.mark.parametrize("case", op_cases(HOST), ids=str)
def test_declaration(case: OpCase) -> None:
    check_op(case)


@pytest.mark.parametrize("case", CASES, ids=str)
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
    supports = (
        (lambda call: None)
        if name == "dense"
        else (lambda call: "rows of odd bytes" if call.arguments["down"].shape[1] % 8 else None)
    )
    here = replace(kernel, supports=supports, workspace=None)  # which it states of the other device's libraries
    assert check_kernel(KernelCase(ops.moe, here, "cpu", dtype))


def test_every_op_of_the_sdk_says_which_of_its_arguments_have_rows() -> None:
    assert all(case.op.rows for case in op_cases(HOST) if "::" not in case.op.name)


@pytest.mark.parametrize(
    "name", [case.op.name for case in op_cases(HOST) if "quant" in case.op.name or "scaled" in case.op.name]
)
def test_ops_of_few_bits_are_checked_at_a_models_sizes(name: str) -> None:
    """A kernel may be wrong from some number of columns, tiles or blocks on."""
    op, generator = HOST.op(name), torch.Generator().manual_seed(0)
    declared = getattr(ops, name)
    assert op.name == name and any(large(Batch(0, args)) for args in declared.inputs(generator, torch.float32))


def test_a_kernel_that_is_wrong_at_real_sizes_only_is_named() -> None:
    host = load_plugins("planted")
    (case,) = (
        c for c in kernel_cases(host, ["planted"]) if c.kernel.name == "wrong_far_scales" and c.dtype is torch.float32
    )
    with pytest.raises(AssertionError, match=r"quantized_linear=wrong_far_scales.*256, 2048"):
        check_kernel(case)


def test_attention_taken_row_by_row_is_attention() -> None:
    for args in ops.paged_attention.inputs(torch.Generator().manual_seed(3), torch.float32):
        whole = ops.paged_attention.reference(*args)
        rows = [*reversed(range(len(whole))), 0]
        assert callable(ops.paged_attention.rows)
        found = ops.paged_attention.reference(*ops.paged_attention.rows(args, rows))
        torch.testing.assert_close(found, whole[rows], rtol=0, atol=5e-6)


def test_a_declaration_must_say_what_it_returns() -> None:
    from bestiary import PluginError

    with pytest.raises(PluginError, match="does not say how many tensors"):

        @ops.op(inputs=lambda generator, dtype: iter(()))
        def unannotated(x):
            return x


@pytest.mark.parametrize("field", ["mutates", "rows"])
def test_a_declaration_names_its_own_parameters(field: str) -> None:
    from bestiary import PluginError

    with pytest.raises(PluginError, match=rf"op same: {field} names no parameter: \['y'\]"):

        @ops.op(inputs=lambda generator, dtype: iter(()), **{field: ("y",)})
        def same(x: torch.Tensor) -> torch.Tensor:
            return x.clone()
