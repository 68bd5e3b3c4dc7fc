"""An op may gain parameters that have a default; kernels from before go on with the calls that there were then."""

import older_kernels
import pytest
import torch

from bestiary import Kernel, PluginError
from bestiary.core.plugins import PluginHost
from bestiary.core.program.calls import candidates, load_kernel
from bestiary.spec import Call, TensorFacts

HOST = PluginHost.load(plugins=[older_kernels], strict=True)


def _call(shift: float) -> Call:
    return Call("older::scale", {"x": TensorFacts((3, 4), "float32"), "factor": 2.0, "shift": shift}, "cpu")


def test_a_call_that_leaves_the_new_parameter_alone_runs_on_either() -> None:
    able, refused = candidates(_call(0.0), HOST)
    assert {kernel.name for kernel in able} == {"old", "new"} and not refused
    x, out = torch.randn(3, 4), torch.empty(3, 4)
    for kernel in able:
        load_kernel(kernel, older_kernels.scale)(x, 2.0, 0.0, out=out)
        assert torch.equal(out, 2 * x)


def test_a_call_that_uses_it_runs_on_the_newer_one_only() -> None:
    able, refused = candidates(_call(0.5), HOST)
    assert [kernel.name for kernel in able] == ["new"]
    assert refused == {"old": "it does not know the parameter shift"}


def test_a_parameter_without_default_may_not_be_missing() -> None:
    kernel = Kernel(op="older::scale", name="odd", run="older_kernels:lacks_more")
    with pytest.raises(PluginError, match=r"found \(x, shift, out\), expected \(x, factor, shift, out\)"):
        load_kernel(kernel, older_kernels.scale)


def test_an_op_shows_the_parameters_of_its_declaration() -> None:
    import inspect

    assert list(inspect.signature(older_kernels.scale).parameters) == ["x", "factor", "shift"]
