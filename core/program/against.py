"""One run of a kernel beside its op's reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bestiary.core import device as devices
from bestiary.core.errors import PluginError, said
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.bound import reference_kernel
from bestiary.core.program.compare import Deviation, deviation, layout


class Against:
    """A call of a kernel, and the same call of the op's reference.

    Args:
        run: the kernel's function.
        args: the call's, in the op's order.
        outs: memory for the results.
        packed: what the kernel's ``pack`` made, by position.
        label: names kernel and call in errors.
        hint: what to do about a wrong kernel.
    """

    def __init__(
        self,
        op: OpDeclaration[..., Any],
        run: Callable[..., Any],
        args: tuple[Any, ...],
        outs: tuple[Tensor, ...],
        packed: Mapping[int, Any],
        *,
        device: torch.device,
        label: str,
        hint: str | None = None,
    ) -> None:
        self._op, self._run, self._outs, self._device = op, run, outs, device
        self._label, self._hint = label, hint
        self._args = args
        self._mine = [_copied(op, index, packed.get(index, argument)) for index, argument in enumerate(args)]
        self._theirs = [_copied(op, index, argument) for index, argument in enumerate(args)]
        self._keywords = _keywords(outs)

    def again(self) -> None:
        """Run the kernel once more, and wait for it.

        Raises:
            PluginError: it raises.
        """
        self._call()

    def worst(self, where: str) -> Deviation:
        """How far the kernel is from the reference at most.

        Args:
            where: for the error: ``at 8 tokens``.

        Raises:
            PluginError: it raises, does not fill ``out`` as it is given, or lies outside of the op's tolerance.
        """
        self._first()
        self._expected = tuple(torch.empty_like(out) for out in self._outs)
        reference_kernel(self._op)(*self._theirs, **_keywords(self._expected))
        return self._compare(where)

    def worst_again(self, where: str) -> Deviation:
        """The same of a further call on the same constants, after ``worst``: a kernel may have changed what it packed."""
        for index in self._mutated:
            self._mine[index].copy_(self._args[index])
        for out in self._outs:
            out.fill_(float("nan") if out.dtype.is_floating_point else -1)
        self._call()
        return self._compare(where)

    @property
    def _mutated(self) -> list[int]:
        return [index for index, name in enumerate(self._op.parameters) if name in self._op.mutates]

    def _compare(self, where: str) -> Deviation:
        changed = [(self._mine[index], self._theirs[index]) for index in self._mutated]
        pairs = [*zip(self._outs, self._expected, strict=True), *changed]
        deviations = [deviation(found, wanted, self._op.tolerances) for found, wanted in pairs]
        worst = max(deviations, key=lambda one: one.excess, default=Deviation())
        if not worst.excess <= 1:
            raise PluginError(
                "E-KERNEL-WRONG", self._label, f"differs from the op's reference {where}",
                found=str(worst), expected="at most 1", hint=self._hint,
            )  # fmt: skip
        return worst

    def _call(self) -> Any:
        try:
            returned = self._run(*self._mine, **self._keywords)
            devices.synchronize(self._device)
        except Exception as error:
            problem = f"raised {type(error).__name__}: {said(error)}"
            raise PluginError("E-KERNEL-FAILED", self._label, problem) from error
        return returned

    def _first(self) -> None:
        """Run the kernel for the first time: it fills the tensors that it is given, and returns nothing."""
        given = [tensor for tensor in (*self._mine, *self._outs) if isinstance(tensor, Tensor)]
        before = [layout(tensor) for tensor in given]
        returned = self._call()
        found = None if returned is None else f"it returned a {type(returned).__name__}"
        if found is None and [layout(tensor) for tensor in given] != before:
            found = "other memory or another shape"
        if found is not None:
            problem = "must fill out as it is given, and return nothing"
            raise PluginError("E-KERNEL-WRONG", self._label, problem, found=found, hint=self._hint)


def _keywords(outs: tuple[Tensor, ...]) -> dict[str, Any]:
    return {"out": outs[0] if len(outs) == 1 else outs} if outs else {}


def _copied(op: OpDeclaration[..., Any], index: int, argument: Any) -> Any:
    mutated = op.parameters[index] in op.mutates
    return argument.clone() if mutated and isinstance(argument, Tensor) else argument
