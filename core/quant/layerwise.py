"""Running a model over sequences one layer at a time, so that the weights of one layer are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from bestiary.core import device as devices
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.parameters import check_names, parse_config
from bestiary.core.engine.network import make_module
from bestiary.core.errors import DataError, PluginError
from bestiary.core.plugins import PluginHost
from bestiary.core.program.program import Program, Value
from bestiary.core.program.trace import trace
from bestiary.core.progress import Progress, Silent
from bestiary.core.quant.choose import methods_in
from bestiary.core.quant.inputs import Collector, Inputs, Wants
from bestiary.core.quant.kv_ranges import CacheRange, CacheRanges
from bestiary.core.quant.segments import See, Segment, run, segments, step_inputs
from bestiary.core.quant.sharing import Shared, shared
from bestiary.core.quant.tensors import QuantizedTensors, Whole

_TOKENS: Final = 4096  # in one step: products over several sequences at once, and no more memory for what a layer makes

#: What a step's calls made that later layers read, for each step.
_States = list[dict[Value, Tensor]]


class Layer:
    """A layer as it stands before its results are handed to the next.

    Attributes:
        name: path of its module, ``layers.3``; ``embedding`` for what comes before the layers and ``head`` for what follows.
        parameters: names of all it uses.
        inputs: what was seen of the value that a weight reads: one for each matrix ``[N, K]`` of the parameter, E for experts.
            Parameters of ``linear``, ``logits`` and ``moe`` are here, no others.
        caches: what was written to its caches, by path.
        shared: weights that read the same value, and what could take up a scale of it.
    """

    def __init__(
        self,
        name: str,
        parameters: tuple[str, ...],
        seen: Collector,
        shared: tuple[Shared, ...],
        weight: Callable[[str], Tensor],
        again: Callable[[Mapping[str, Tensor]], Mapping[str, CacheRange]],
    ) -> None:
        self.name, self.parameters, self.shared = name, parameters, shared
        self.inputs: Mapping[str, tuple[Inputs, ...]] = seen.inputs()
        self.caches: Mapping[str, CacheRange] = seen.caches.found
        self._weight, self._again = weight, again
        self._replaced: dict[str, Tensor] = {}

    def weight(self, name: str) -> Tensor:
        """A parameter as the layer was run with it, in the dtype of the run. It must not be written to."""
        return self._weight(name)

    def put(self, replaced: Mapping[str, Tensor]) -> None:
        """Run the layer again with these parameters, at the latest before the next layer reads its results.

        Raises:
            PluginError: the layer has no such parameter, or it has another shape.
        """
        for name, tensor in replaced.items():
            shape = tuple(self.weight(name).shape) if name in self.parameters else None
            if tuple(tensor.shape) != shape:
                raise PluginError(
                    "E-QUANT-PUT",
                    f"{self.name}, parameter {name}",
                    "can't be replaced by this tensor",
                    found=str(tuple(tensor.shape)),
                    expected="a parameter of the layer" if shape is None else str(shape),
                )
        self._replaced.update(replaced)

    def settle(self) -> None:
        """Run the layer with what was put. Then ``caches`` is what is written with that, ``inputs`` stays what it was."""
        if self._replaced:
            self.caches, self._replaced = self._again(self._replaced), {}


def layerwise(
    checkpoint: Checkpoint,
    host: PluginHost,
    sequences: Sequence[Sequence[int]],
    *,
    wants: Wants | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Layer]:
    """The model's layers in the order of execution, each after it ran over all sequences.

    Each sequence is a prompt of its own. Between layers only what later ones read is kept (the hidden states, fp32).
    A layer without a :meth:`Layer.put` runs once.

    Args:
        sequences: token ids.
        dtype: of the weights and of what they make.

    Raises:
        DataError: no sequence, or one that the model can't run: empty, too long, an id beyond its vocabulary.
        PluginError: the model can't be traced.
    """
    manifest, progress = checkpoint.manifest, progress or Silent()
    model = host.model(manifest.model)
    check_names(model, manifest.model_format)
    config = parse_config(model, manifest.config)
    _check(sequences, config.vocab_size, config.max_length)
    module = make_module(model, config)
    program = trace(module)
    parts = segments(program, module)
    place = devices.choose(device)
    states = [step_inputs(program, several, place) for several in _steps(sequences)]
    source = _Parameters(_weights(checkpoint, host, module, place), dtype, place, parts)
    progress.start("calibrate", len(parts), "layers")
    for number, part in enumerate(parts):
        yield from _layer(part, states, source, program, wants or Wants())
        source.done(number)
        progress.advance(1)
    progress.finish(f"{sum(map(len, sequences))} tokens in {len(sequences)} sequences")


def _weights(checkpoint: Checkpoint, host: PluginHost, module: nn.Module, device: torch.device) -> Whole:
    """The parameters; quantized ones as they are restored."""
    methods = {name: one.method for name, one in methods_in(checkpoint.manifest.quantization, host).items()}
    if not methods:
        return checkpoint.weights
    shapes = {name: tuple(one.shape) for name, one in module.named_parameters()}
    return QuantizedTensors(checkpoint.weights, checkpoint.weights.entries, methods, shapes, device)


def _layer(part: Segment, states: _States, source: _Parameters, program: Program, wants: Wants) -> Iterator[Layer]:
    """Yield one layer, and leave what it made in ``states``."""

    def through(before: _States, see: See) -> _States:
        return [run(part, state, source, program, source.dtype, see) for state in before]

    def again(replaced: Mapping[str, Tensor]) -> Mapping[str, CacheRange]:
        made.clear()
        source.put(replaced)
        ranges = CacheRanges()
        made.extend(through(states, ranges))
        return ranges.found

    collector = Collector(part.instructions, wants)
    made = through(states, collector)
    layer = Layer(part.name, part.parameters, collector, shared(program, part.instructions), source, again)
    del collector
    yield layer
    layer.settle()
    states[:] = made


class _Parameters:
    """Gives the parameters of the layer that runs, and forgets them with it; replaced ones stay while a later layer has them."""

    def __init__(self, weights: Whole, dtype: torch.dtype, device: torch.device, parts: Sequence[Segment]) -> None:
        self._weights, self.dtype, self._device, self._parts = weights, dtype, device, parts
        self._held: dict[str, Tensor] = {}
        self._replaced: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        if name in self._replaced:
            return self._replaced[name]
        if name not in self._held:
            self._held[name] = self._weights.tensor(name).to(self._device, self.dtype)
        return self._held[name]

    def put(self, replaced: Mapping[str, Tensor]) -> None:
        for name, tensor in replaced.items():
            self._held.pop(name, None)
            self._replaced[name] = tensor.to(self._device, self.dtype)

    def done(self, number: int) -> None:
        """The layer of that number is done."""
        later = {name for part in self._parts[number + 1 :] for name in part.parameters}
        self._replaced = {name: tensor for name, tensor in self._replaced.items() if name in later}
        self._held.clear()
        for name in self._parts[number].parameters:
            self._weights.forget(name)


def _steps(sequences: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Neighbouring sequences that run together."""
    several: list[Sequence[int]] = []
    for sequence in sequences:
        if several and sum(map(len, several)) + len(sequence) > _TOKENS:
            yield several
            several = []
        several.append(sequence)
    if several:
        yield several


def _check(sequences: Sequence[Sequence[int]], vocabulary: int, longest: int) -> None:
    def wrong(where: str, problem: str, **found: Any) -> DataError:
        return DataError("E-QUANT-SEQUENCE", where, problem, **found)

    if not sequences:
        raise wrong("calibration", "there is no sequence")
    for number, sequence in enumerate(sequences):
        where = f"calibration, sequence {number}"
        if not 0 < len(sequence) <= longest:
            raise wrong(where, "has a length the model can't run", found=str(len(sequence)), expected=f"1 to {longest}")
        if not 0 <= min(sequence) <= max(sequence) < vocabulary:
            bad = next(token for token in sequence if not 0 <= token < vocabulary)
            raise wrong(where, "has a token the model does not know", found=str(bad), expected=f"0 to {vocabulary - 1}")
