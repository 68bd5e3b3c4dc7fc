"""What the kernels that may run a network's calls take: workspace while they run, and weights packed as they want them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bestiary.core.engine.network import Network
from bestiary.core.engine.options import BuildOptions
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.plugins import PluginHost
from bestiary.core.program.bind import ROWS, overridden
from bestiary.core.program.calls import REFERENCE, candidates, describe, signature
from bestiary.core.program.program import Instruction, Value, Weight
from bestiary.core.program.shapes import Shape, Sizes
from bestiary.spec import Call, Kernel


class KernelTakes:
    """Bounds over every kernel that a build could choose, since which one will be is not known before it measures.

    Attributes:
        packed: bytes of constants in the layouts of kernels with a ``pack``, taken to be as many as unpacked. A layout that
            every candidate reads replaces the constants: it counts for the largest call only, while it is made.
        recordable: whether every call has a kernel that may be recorded in a graph.
        unstated: ``op=kernel`` of kernels that don't say what they allocate.
    """

    def __init__(self, network: Network, options: BuildOptions, host: PluginHost) -> None:
        self._network, self._host = network, host
        self._able: list[tuple[Instruction, tuple[Kernel, ...]]] = []
        known: dict[str, tuple[Kernel, ...]] = {}
        copies = largest = 0
        for instruction in network.program.instructions:
            if not isinstance(instruction.target, OpDeclaration):
                continue
            name = signature(instruction, network.shapes, network.target.dtype)
            if name not in known:
                known[name] = self._kernels(instruction, instruction.target, options.kernels)
                self._able.append((instruction, known[name]))
            layouts = {kernel.pack for kernel in known[name]}
            if layouts != {None} and layouts:
                dtype = network.target.dtype
                size = sum(math.prod(w.shape) * w.dtype(dtype).itemsize for w in _constants(instruction))
                copies, largest = copies + (len(layouts) - 1) * size, max(largest, size)
        self.packed = copies + largest
        self.recordable = all(any(kernel.graph_safe for kernel in able) for _, able in self._able)
        self.unstated = tuple(sorted({label for i, able in self._able for label in _unstated(i, able)}))

    def workspace(self, shapes: Mapping[Value, Shape], sizes: Sizes) -> int:
        """What the hungriest call of a step of these sizes takes beyond its results."""
        copies = [
            math.prod(shapes[result].at(sizes)) * shapes[result].dtype.itemsize
            for instruction in self._network.program.instructions
            if not isinstance(instruction.target, OpDeclaration)
            for result in instruction.results
            if shapes[result].base is None
        ]
        return max([0, *copies, *(self._call(i, able, shapes, sizes) for i, able in self._able)])

    def _call(
        self, instruction: Instruction, able: tuple[Kernel, ...], shapes: Mapping[Value, Shape], sizes: Sizes
    ) -> int:
        assert isinstance(instruction.target, OpDeclaration)
        facts = self._facts(instruction, instruction.target, shapes, sizes)
        results = sum(math.prod(shapes[r].at(sizes)) * shapes[r].dtype.itemsize for r in instruction.results)
        return max((kernel.workspace(facts) if kernel.workspace else results for kernel in able), default=results)

    def _kernels(
        self, instruction: Instruction, op: OpDeclaration[..., object], overrides: Mapping[str, str]
    ) -> tuple[Kernel, ...]:
        """Those that can run the call at some size and in the mode; only the named one where the user named one; none: the
        reference."""
        found: dict[str, Kernel] = {}
        for rows in ROWS:
            facts = self._facts(instruction, op, self._network.shapes, Sizes(rows, rows, rows))
            able, refused = candidates(facts, self._host, invariant=self._network.target.deterministic)
            named = overridden(op.name, overrides, able, refused)
            if named != REFERENCE:
                found.update({kernel.name: kernel for kernel in able if named in (None, kernel.name)})
        return tuple(found.values())

    def _facts(
        self,
        instruction: Instruction,
        op: OpDeclaration[..., object],
        shapes: Mapping[Value, Shape],
        sizes: Sizes,
    ) -> Call:
        target = self._network.target
        return describe(op, instruction.args, shapes, target.dtype, target.device, target.features, sizes)


def _constants(instruction: Instruction) -> list[Weight]:
    return [argument for argument in instruction.args if isinstance(argument, Weight)]


def _unstated(instruction: Instruction, able: tuple[Kernel, ...]) -> list[str]:
    silent = [kernel.name for kernel in able if kernel.workspace is None]
    return [f"{instruction.target.name}={name}" for name in (silent if able else [REFERENCE])]
