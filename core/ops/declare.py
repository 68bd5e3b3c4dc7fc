"""What an op is: a typed function whose body is its reference, with inputs to test it on and tolerances to hold it to."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.fx import Proxy

from bestiary.core.errors import PluginError
from bestiary.core.ops.cost import Cost

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Tolerance:
    """How far a kernel may lie from the reference: ``|kernel − reference| ≤ absolute + relative · |reference|``."""

    absolute: float
    relative: float


#: One rounding of the result, and what a different summation order may add to it.
ROUNDING: Mapping[str, Tolerance] = {
    "float64": Tolerance(1e-9, 1e-9),
    "float32": Tolerance(1e-5, 1e-5),
    "bfloat16": Tolerance(1e-2, 1.6e-2),
    "float16": Tolerance(2e-3, 2e-3),
}

#: The results must be the same to the bit: data is moved, or every step of the arithmetic is fixed.
EXACT: Mapping[str, Tolerance] = {name: Tolerance(0.0, 0.0) for name in ROUNDING}

#: Makes test cases: argument tuples in the op's order, on the generator's device, floating tensors in the dtype given.
Inputs = Callable[[torch.Generator, torch.dtype], Iterator[tuple[Any, ...]]]

#: The parameters whose first axis counts rows, or a function from a call's arguments and row numbers to the arguments of
#: the call that computes just those rows, in that order; a number may come twice.
Rows = tuple[str, ...] | Callable[[tuple[Any, ...], Sequence[int]], tuple[Any, ...]]


class OpDeclaration(Generic[P, R]):
    """A declared op. Calling it runs the reference, or, while a model is being traced, records the call.

    Attributes:
        name: ``rms_norm``, or ``plugin::name`` for a plugin's op.
        reference: the function in plain torch, or written in other ops if this op is a fusion of them.
        inputs: generator of test cases, odd shapes included.
        tolerances: by dtype name, what the op's kernels are held to.
        mutates: the parameters that a call changes in place.
        constants: the parameters that are weights, which a kernel's ``pack`` may lay out.
        results: how many tensors it returns (0, 1 or more).
        fake: like the reference, but only shapes and dtypes count: it is run on meta tensors.
        rows: which arguments have rows; empty where nothing is said. Checks derive batches of other sizes from it.
        cost: what a call takes, from its arguments; None where nothing is said.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str,
        inputs: Inputs,
        tolerances: Mapping[str, Tolerance],
        mutates: tuple[str, ...],
        fake: Callable[..., Any] | None,
        constants: tuple[str, ...] = ("weight", "bias"),
        rows: Rows = (),
        cost: Callable[..., Cost] | None = None,
    ) -> None:
        self.cost = cost
        self.name, self.reference, self.inputs = name, function, inputs
        self.tolerances, self.mutates, self.fake, self.rows = tolerances, mutates, fake or function, rows
        self.signature = self.__signature__ = inspect.signature(function)
        self.parameters = tuple(self.signature.parameters)
        self.constants = tuple(parameter for parameter in self.parameters if parameter in constants)
        self.results = _count_results(name, function)
        self.__doc__, self.__name__, self.__module__ = function.__doc__, name, function.__module__
        for field, names in (("mutates", mutates), ("rows", () if callable(rows) else rows)):
            if unknown := set(names) - set(self.parameters):
                raise PluginError("E-OP-DECLARATION", f"op {name}", f"{field} names no parameter: {sorted(unknown)}")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for value in bound.args:
            if isinstance(value, Proxy):
                recorded: R = self._record(value, bound.args)
                return recorded
        return self.reference(*args, **kwargs)

    def _record(self, proxy: Proxy, args: tuple[Any, ...]) -> Any:
        recorded: Any = proxy.tracer.create_proxy("call_function", self, args, {})
        if self.results > 1:
            return tuple(recorded[index] for index in range(self.results))
        return recorded if self.results else None

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def op(
    *,
    inputs: Inputs,
    tolerances: Mapping[str, Tolerance] = ROUNDING,
    mutates: tuple[str, ...] = (),
    fake: Callable[..., Any] | None = None,
    name: str | None = None,
    constants: tuple[str, ...] = ("weight", "bias"),
    rows: Rows = (),
    cost: Callable[..., Cost] | None = None,
) -> Callable[[Callable[P, R]], OpDeclaration[P, R]]:
    """Declare an op: the decorated function is its reference.

    Args:
        inputs: yields test cases for a dtype; every kernel of the op is tested on them.
        tolerances: by dtype name; in a dtype that is not listed a build can't check kernels and refuses them.
        mutates: parameters changed in place (a cache).
        fake: computes shapes and dtypes on meta tensors where the reference can't (it looks at values).
        name: ``plugin::name`` for a plugin's op; the function's own name for the core's.
        constants: those of the parameters that models give weights: tests let a kernel's ``pack`` lay them out.
        rows: the parameters with a row for each of the results' rows, on their first axis: row i of the results depends
            on row i of those and on all of the others. For other layouts a function ``rows(args, numbers)`` that gives
            the arguments of a call for those rows only. Kernels are then also checked on no row, one and odd numbers of
            them, and their claim to be batch-invariant is put to the test.
        cost: the arithmetic and the bytes of a call, from its arguments in the op's order; constants that a kernel packed are
            meta tensors of their first shapes. ``bestiary trace`` compares what kernels reach with what the device can do.

    Raises:
        PluginError: the function's annotations don't say what it returns.
    """

    def declare(function: Callable[P, R]) -> OpDeclaration[P, R]:
        return OpDeclaration(
            function,
            name=name or function.__name__,
            inputs=inputs,
            tolerances=tolerances,
            mutates=mutates,
            fake=fake,
            constants=constants,
            rows=rows,
            cost=cost,
        )

    return declare


def _count_results(name: str, function: Callable[..., Any]) -> int:
    returned = get_type_hints(function).get("return", inspect.Parameter.empty)
    if returned is Tensor:
        return 1
    if returned is type(None):
        return 0
    if get_origin(returned) is tuple and set(returned.__args__) == {Tensor}:
        return len(returned.__args__)
    raise PluginError(
        "E-OP-DECLARATION",
        f"op {name}",
        "the return annotation does not say how many tensors it returns",
        found=str(returned),
        expected="Tensor, tuple[Tensor, …] or None",
    )


def like_first(x: Tensor, *rest: Any) -> Tensor:
    """A fake for ops whose result looks like their first argument."""
    return x.new_empty(x.shape)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """A tensor of normal deviates on the generator's device, for input generators."""
    values = torch.randn(*shape, generator=generator, device=generator.device, dtype=torch.float32) * scale
    return values.to(dtype)


def integers(generator: torch.Generator, high: int, *shape: int) -> Tensor:
    """A tensor of int64 in ``[0, high)`` on the generator's device, for input generators."""
    return torch.randint(high, shape, generator=generator, device=generator.device)
