"""The op's declaration: signature, reference, test inputs and tolerances. T tokens · F features."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bestiary import ops


def inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    """Calls that every kernel of the op is tested on: odd sizes, and halves of one product."""
    for tokens, features in ((1, 8), (5, 33)):
        both = ops.normal(generator, tokens, 2 * features, dtype=dtype)
        yield both[:, :features], both[:, features:]


@ops.op(
    name="{{ cookiecutter.name }}::{{ cookiecutter.op }}",
    inputs=inputs,
    tolerances=ops.ROUNDING,
    rows=("gate", "up"),
)
def {{ cookiecutter.op }}(gate: Tensor, up: Tensor) -> Tensor:
    """``relu(gate)² · up``, computed in fp32: gate, up ``[T, F]`` → ``[T, F]`` in the dtype of ``gate``."""
    return (functional.relu(gate.float()).square() * up.float()).to(gate.dtype)
