"""An engine's step program as a side, watched call by call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bestiary.core.engine.load import LoadedEngine
from bestiary.core.engine.steps import opened, step
from bestiary.core.errors import RequestError
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.bound import BoundCall
from bestiary.core.program.program import Input, Value
from bestiary.core.program.shapes import Dim
from bestiary.core.runtime.messages import StepMessage
from bestiary.core.runtime.reference import ReferenceRunner
from bestiary.core.sides.side import Made, Seen, plain

_ROW_EACH = (Dim(0, tokens=1), Dim(0, rows=1))


class EngineSide:
    """A loaded engine that runs one sequence at a time, in blocks of its own: nobody else may use it meanwhile.

    Args:
        engine: in this process, with a step program.
    """

    def __init__(self, engine: LoadedEngine, label: str) -> None:
        assert not isinstance(engine.runner, ReferenceRunner)
        self.engine, self.label, self._runner = engine, label, engine.runner
        program, shapes = engine.network.program, engine.network.shapes
        self._names: dict[Value, list[str]] = {}
        for name, value in program.places.items():
            if value in shapes and shapes[value].dims and shapes[value].dims[0] in _ROW_EACH:
                self._names.setdefault(value, []).append(name)
        self._names.setdefault(program.outputs["logits"], []).append("logits")

    @property
    def longest(self) -> int:
        """Most tokens of a step that has logits for each of them."""
        limits = self.engine.network.limits
        return min(limits.tokens, limits.rows)

    def run(
        self, tokens: Sequence[int], chunks: Sequence[int] = (), corrected: Mapping[str, Tensor] | None = None
    ) -> Seen:
        """All tensors of one sequence; those that a fusion swallowed are not there.

        What a layer's cache holds of the tokens is ``layers.0.attention.cache.k`` and ``.v``.

        Args:
            chunks: see :class:`~bestiary.core.sides.side.Side`.
            corrected: tensors that take the place of the engine's own as soon as those are made (and seen): every tensor is
                then made of right ones, and what is wrong with it is its own fault.

        Raises:
            RequestError: the sequence or a chunk is too long for the engine.
        """
        parts: dict[str, list[Tensor]] = {}
        seen, start = Seen(), 0
        for size in chunks or (len(tokens),):
            watcher = _Watcher(self._names, seen, parts, corrected or {}, slice(start, start + size))
            self._runner.observer = watcher
            try:
                with torch.inference_mode():
                    self._runner.forward(self._message(tokens, start, size))
            finally:
                self._runner.observer = None
            start += size
        seen.tensors = {name: torch.cat(pieces) for name, pieces in parts.items()}
        return seen

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """After each token, ``[tokens, vocabulary]`` float32, in as few steps as the engine's limits allow."""
        pieces, start = [], 0
        while start < len(tokens):
            size = min(self.longest, len(tokens) - start)
            with torch.inference_mode():
                pieces.append(plain(self._runner.forward(self._message(tokens, start, size))["logits"]))
            start += size
        return torch.cat(pieces)

    def _message(self, tokens: Sequence[int], start: int, size: int) -> StepMessage:
        if len(tokens) > self.engine.max_seq_len or size > self.longest:
            raise RequestError(
                "E-SIDE-LENGTH",
                self.label,
                "can't run a sequence of this length",
                found=f"{len(tokens)} tokens, {size} of them in a step",
                expected=f"at most {self.engine.max_seq_len}, {self.longest} in a step",
            )
        if start == 0:
            # A token's slot is then its position.
            tables = [range(-(-len(tokens) // group.block_size)) for group in self.engine.cache_groups]
            new = [opened(0, tokens)]
            return step((0, tokens[:size]), new=new, blocks={0: tables}, rows=range(size))
        if size == 1:
            self._runner.inputs.state.last[0] = tokens[start]
            return step(decodes=[0])
        return step((0, tokens[start : start + size]), rows=range(size))


class _Watcher:
    """Sees the calls of one step, and keeps what has a name."""

    def __init__(
        self,
        names: Mapping[Value, list[str]],
        seen: Seen,
        parts: dict[str, list[Tensor]],
        corrected: Mapping[str, Tensor],
        rows: slice,
    ) -> None:
        self._names, self._seen, self._parts, self._corrected, self._rows = names, seen, parts, corrected, rows

    def __call__(self, call: BoundCall) -> None:
        if call.run is not None:
            call.run()
        instruction = call.instruction
        by = Made(instruction.target.name, call.kernel, instruction.scope)
        for value, tensor in zip(instruction.results, call.results, strict=True):
            self._see(self._names.get(value, []), tensor, by)
        if isinstance(instruction.target, OpDeclaration) and instruction.target.mutates:
            for value, tensor in zip(instruction.args, call.args, strict=True):
                if isinstance(value, Input) and value.name.startswith(("k.", "v.")):
                    kind, _, path = value.name.partition(".")
                    self._see([f"{path}.{kind}"], tensor.flatten(0, 1)[self._rows], by)

    def _see(self, names: Sequence[str], tensor: Tensor, by: Made) -> None:
        for name in names:
            self._parts.setdefault(name, []).append(plain(tensor))
            self._seen.made[name] = by
        right = next((self._corrected[name] for name in names if name in self._corrected), None)
        if right is not None:
            tensor.copy_(right[self._rows].reshape(tensor.shape))
