"""Which kernels, ops and fusions a distribution brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from packaging.utils import canonicalize_name

from bestiary.core.conformance.kernel_cases import KernelCase, OpCase, dtypes
from bestiary.core.errors import PluginError
from bestiary.core.plugins import Origin, PluginHost
from bestiary.core.program.calls import load_op
from bestiary.core.program.passes.fuse import pattern_of
from bestiary.spec import Fusion, Kernel

_OWN = "bestiary"  # whose ops every process imports


@dataclass(frozen=True)
class Selection:
    """What a distribution (or a plugin module that is not installed) registered.

    Args:
        ops: those that it declares.
        registered: its kernels, of its own ops and of others'.
        fusions: each also has its op among ``ops``, or among another's.
        crashed: op → what became of the process that imported its declaration; nothing of it is among the others.
    """

    host: PluginHost
    name: str
    ops: tuple[OpCase, ...]
    registered: tuple[Kernel, ...]
    fusions: tuple[Fusion, ...]
    crashed: Mapping[str, str] = field(default_factory=dict)

    def only(self, op: str) -> Selection:
        """Of these, what belongs to one op.

        Raises:
            PluginError: nothing does; with the ops that there are.
        """
        ops = tuple(case for case in self.ops if case.op.name == op)
        kernels = tuple(kernel for kernel in self.registered if kernel.op == op)
        crashed = {name: how for name, how in self.crashed.items() if name == op}
        if not ops and not kernels and not crashed:
            known = sorted({*(case.op.name for case in self.ops), *(one.op for one in self.registered), *self.crashed})
            raise PluginError(
                "E-KERNEL-SELECT", self.name, "has no kernel of this op", found=op, expected=", ".join(known)
            )
        fusions = tuple(fusion for fusion in self.fusions if fusion.op == op)
        return Selection(self.host, self.name, ops, kernels, fusions, crashed)

    def kernels(self, devices: Sequence[str]) -> list[KernelCase]:
        """Each kernel on each device, in each dtype of its op."""
        return [
            KernelCase(op, kernel, device, dtype)
            for kernel in self.registered
            for op in [load_op(kernel.op, self.host)]
            for device in devices
            for dtype in dtypes(op)
        ]

    def check_fusions(self) -> None:
        """Trace the patterns.

        Raises:
            PluginError: a fused op's reference is none.
        """
        for fusion in self.fusions:
            pattern_of(load_op(fusion.op, self.host))


def select(host: PluginHost, name: str, crash: Callable[[str], str | None] = lambda op: None) -> Selection:
    """What a distribution registered; a plugin's or a module's name does too.

    Args:
        crash: imports the declaration of an op of this name elsewhere, and says what became of that process if it ended.

    Raises:
        PluginError: there is no such distribution, it could not be loaded, or it brings no kernel and no op; with those
            that do.
    """
    mine = [record for record in host.records() if _named(record.origin, name) or record.module == name]
    for record in mine:
        if record.state != "loaded":
            raise record.error or PluginError("E-KERNEL-SELECT", name, f"is {record.state}: {record.reason}")
    origins = {record.origin for record in mine}
    declared = tuple(op.name for op in host.ops() if host.origin(op) in origins)
    kernels = tuple(kernel for kernel in host.kernels() if host.origin(kernel) in origins)
    if not declared and not kernels:
        having = {host.origin(one).distribution for one in (*host.ops(), *host.kernels())}
        raise PluginError(
            "E-KERNEL-SELECT",
            name,
            "brings no kernel and no op" if mine else "is not installed",
            expected=f"one of {', '.join(sorted(having))}",
        )
    fusions = tuple(fusion for fusion in host.fusions() if host.origin(fusion) in origins)
    crashed = {}
    for op in dict.fromkeys((*declared, *(kernel.op for kernel in kernels), *(fusion.op for fusion in fusions))):
        if host.origin(host.op(op)).distribution != _OWN and (how := crash(op)) is not None:
            crashed[op] = how
    return Selection(
        host,
        name,
        tuple(OpCase(load_op(op, host)) for op in declared if op not in crashed),
        tuple(kernel for kernel in kernels if kernel.op not in crashed),
        tuple(fusion for fusion in fusions if fusion.op not in crashed),
        crashed,
    )


def _named(origin: Origin, name: str) -> bool:
    return name == origin.plugin or canonicalize_name(name) == canonicalize_name(origin.distribution)
