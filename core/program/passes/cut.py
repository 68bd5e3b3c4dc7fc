"""Pipeline parallelism: one stage of the program, from one layer border to the next."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from bestiary.core.errors import ConfigError
from bestiary.core.ops import collective
from bestiary.core.ops.collective import Ranks
from bestiary.core.ops.declare import OpDeclaration
from bestiary.core.program.program import Input, Instruction, Program, Result, Value
from bestiary.core.program.shapes import Dim, Geometry, Shape, infer
from bestiary.layers.model import LayerStack

#: By how it grows, the step input whose length a received value's first axis has.
_LENGTHS = {Dim(0, tokens=1): "tokens", Dim(0, sequences=1): "kv_lengths", Dim(0, rows=1): "logit_rows"}


def cut(program: Program, model: nn.Module, stage: Ranks, geometry: Geometry) -> None:
    """Keep one stage's instructions; what it needs of earlier stages it receives, what later ones need it sends.

    The first stage has what comes before the layers (the embedding), the last what comes after them (norm and head).
    What follows from the step's inputs alone (a rotary table) is computed again in each stage that reads it. To be
    called after sharding, whose slices cross the borders as they are, and before fusing, which stays within a stage.

    Raises:
        ConfigError: there are fewer layers than stages, or a layer's cache would be used in two stages.
    """
    if stage.size == 1:
        return
    borders = _borders(program, layers_of(program, model), model, stage.size)
    start, stop = borders[stage.rank], borders[stage.rank + 1]
    caches = _caches(program, borders, stage.rank)
    shapes = infer(program, geometry)
    repeatable = _repeatable(program)
    inputs = dict(program.inputs)
    first, mine = program.instructions[:start], program.instructions[start:stop]
    received = [_receive(value, shapes[value], inputs, stage) for value in _crossing(program, start, repeatable)]
    sent = [Instruction(collective.send, (value, stage), (), "") for value in _crossing(program, stop, repeatable)]
    _keep_outputs(program, mine, last=stage.rank == stage.size - 1)
    repeated = [instruction for instruction in first if instruction in repeatable]
    program.instructions = [*repeated, *received, *mine, *sent]
    program.drop_unused()
    program.caches = {path: spec for path, spec in program.caches.items() if path in caches}
    elsewhere = {f"{name}.{path}" for path in program.group_of.keys() - caches for name in ("k", "v")}
    program.inputs = {name: value for name, value in program.inputs.items() if name not in elsewhere}


def layers_of(program: Program, model: nn.Module) -> list[str]:
    """The paths of the model's layers in the order of execution: those of its outermost layer stacks."""
    stacks = [path for path, module in model.named_modules() if isinstance(module, LayerStack)]
    outermost = [path for path in stacks if not any(path.startswith(f"{other}.") for other in stacks)]
    paths = [f"{path}.{name}" for path in outermost for name, _ in model.get_submodule(path).named_children()]
    begins = {path: _begin(program, path) for path in paths}
    return sorted((path for path in paths if begins[path] is not None), key=lambda path: begins[path] or 0)


def divide(weights: Sequence[int], stages: int) -> list[int]:
    """At which layer each stage begins, and the number of layers: neighbours together, as even as layers allow.

    Each border lies where what is before it comes nearest to its share, and later rather than earlier: the last stage
    also has the head. Every stage has a layer.
    """
    total, count = sum(weights), len(weights)
    starts = [0]
    for stage in range(1, stages):
        share = total * stage / stages
        possible = range(starts[-1] + 1, count - (stages - stage) + 1)
        starts.append(min(possible, key=lambda border: (abs(sum(weights[:border]) - share), -border)))
    return [*starts, count]


def _begin(program: Program, path: str) -> int | None:
    """Index of a module's first instruction."""
    inside = (path, f"{path}.")
    for index, instruction in enumerate(program.instructions):
        if instruction.scope == inside[0] or instruction.scope.startswith(inside[1]):
            return index
    return None


def _borders(program: Program, layers: list[str], model: nn.Module, stages: int) -> list[int]:
    """The instruction that each stage begins with, and the number of instructions."""
    if len(layers) < stages:
        raise ConfigError(
            "E-BUILD-STAGES",
            "pipeline_parallel",
            "the model has fewer layers than there are to be stages, and a stage has one layer at least",
            found=f"{stages} stages and {len(layers)} layer{'' if len(layers) == 1 else 's'}",
            expected=f"at most {len(layers)} stages" if layers else "a model whose layers are in a LayerStack",
            hint="ask for fewer stages, or divide each layer with tensor_parallel",
        )
    # Counted before tensor-parallel slicing, so that all ranks of a stage agree.
    weights = [sum(p.numel() * p.element_size() for p in model.get_submodule(path).parameters()) for path in layers]
    starts = divide(weights, stages)[1:-1]
    return [0, *(_begin(program, layers[layer]) or 0 for layer in starts), len(program.instructions)]


def _caches(program: Program, borders: list[int], rank: int) -> set[str]:
    """The caches that a stage's instructions use; each belongs to one stage."""
    owners: dict[str, set[int]] = {}
    for stage, (start, stop) in enumerate(pairwise(borders)):
        for instruction in program.instructions[start:stop]:
            for value in instruction.values():
                if isinstance(value, Input) and value.name.startswith(("k.", "v.")):
                    owners.setdefault(value.name[2:], set()).add(stage)
    for path, stages in owners.items():
        if len(stages) > 1:
            raise ConfigError(
                "E-BUILD-STAGES",
                path,
                "layers of different pipeline stages use this cache",
                found=f"stages {', '.join(map(str, sorted(stages)))}",
                expected="one stage",
                hint="choose another number of stages",
            )
    return {path for path, stages in owners.items() if stages == {rank}}


def _repeatable(program: Program) -> set[Instruction]:
    """Instructions whose results the step's inputs alone determine: no weight, no cache, nothing changed in place."""
    known: set[Value] = {value for name, value in program.inputs.items() if not name.startswith(("k.", "v."))}
    found = set()
    for instruction in program.instructions:
        mutates = isinstance(instruction.target, OpDeclaration) and instruction.target.mutates
        if not mutates and all(value in known for value in instruction.values()):
            found.add(instruction)
            known.update(instruction.results)
    return found


def _crossing(program: Program, border: int, repeatable: set[Instruction]) -> list[Result]:
    """What is made before a border and read after it, in the order in which it is made."""
    wanted = {value for instruction in program.instructions[border:] for value in instruction.values()}
    return [
        result
        for instruction in program.instructions[:border]
        if instruction not in repeatable
        for result in instruction.results
        if result in wanted
    ]


def _receive(value: Result, shape: Shape, inputs: dict[str, Input], stage: Ranks) -> Instruction:
    like = _LENGTHS.get(shape.dims[0]) if shape.dims else None
    if like is None or any(dim != Dim(dim.constant) for dim in shape.dims[1:]):
        raise ConfigError(
            "E-BUILD-STAGES",
            f"value {value.name}",
            "crosses a pipeline border in a shape that can't be received",
            found=str(shape),
            expected="a first axis of tokens, sequences or logit rows, and fixed others",
            hint="choose another number of stages, or let the model pass such a value between its layers",
        )
    features = tuple(dim.constant for dim in shape.dims[1:])
    return Instruction(collective.receive, (inputs[like], features, shape.dtype, stage), (value,), "")


def _keep_outputs(program: Program, mine: list[Instruction], *, last: bool) -> None:
    """An output belongs to the stage that makes it; one that no instruction makes, to the last."""
    made = {result for instruction in mine for result in instruction.results}
    producers = program.producers()
    program.outputs = {
        name: value for name, value in program.outputs.items() if value in made or (last and value not in producers)
    }
    program.places = {name: value for name, value in program.places.items() if value in made}
