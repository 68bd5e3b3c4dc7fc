"""The checks of an op's declaration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bestiary.core.conformance.kernel_cases import batches, dtypes
from bestiary.core.conformance.kernel_memory import AROUND_INPUTS, AROUND_RESULTS, Banded
from bestiary.core.conformance.kernel_run import as_tuple, faked
from bestiary.core.ops.declare import OpDeclaration


def op_problem(op: OpDeclaration[..., Any], say: Callable[[str], None] = lambda text: None) -> str | None:
    """What is wrong with a declaration, in words: it is documented, and reference and fake agree on shapes, dtypes and
    what is changed, on the op's own inputs and on the batches that its rows make of them.
    """
    if not (op.__doc__ and "`" in op.__doc__):
        return "its docstring gives no formula and shapes"
    seen = 0
    for dtype in (*dtypes(op), *((torch.float64,) if "float64" in op.tolerances else ())):
        for batch in batches(op, torch.device("cpu"), dtype):
            seen += 1
            say(str(batch))
            if (problem := _batch_problem(op, batch.args)) is not None:
                return f"{batch}: {problem}"
    return None if seen else "its input generator yields nothing"


def _batch_problem(op: OpDeclaration[..., Any], args: tuple[Any, ...]) -> str | None:
    given = {
        name: Banded.copy(arg, around=AROUND_RESULTS if name in op.mutates else AROUND_INPUTS)
        for name, arg in zip(op.parameters, args, strict=True)
        if isinstance(arg, Tensor)
    }
    named = dict(zip(op.parameters, args, strict=True)) | {name: banded.tensor for name, banded in given.items()}
    made = as_tuple(op.reference(*named.values()))
    if len(made) != op.results:
        return f"its reference returned {len(made)} tensors, it declares {op.results}"
    for name, banded in given.items():
        if name not in op.mutates and banded.change_inside() is not None:
            return f"its reference changed its argument {name}"
    for real, fake in zip(made, faked(op, args), strict=True):
        if (real.shape, real.dtype) != (fake.shape, fake.dtype):
            return f"its fake says {fake.dtype}{list(fake.shape)}, its reference makes {real.dtype}{list(real.shape)}"
    return None
