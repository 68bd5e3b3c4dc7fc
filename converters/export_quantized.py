"""Quantized parameters on their way out: as compressed-tensors has them, or restored."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from bestiary.converters.cast import cast
from bestiary.converters.compressed_tensors import Scheme, Tensors, scheme_of, tensors_of, unsaid
from bestiary.converters.operations import Copy, StackExperts
from bestiary.converters.weight_map import Transfer
from bestiary.converters.write import Group
from bestiary.core.checkpoint.checkpoint import Checkpoint
from bestiary.core.checkpoint.safetensors import Slot
from bestiary.core.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.core.checkpoint.parameters import Parameters
    from bestiary.core.quant.choose import Chosen
    from bestiary.core.quant.method import Method

_WEIGHT = ".weight"


class QuantizedExport:
    """Makes the groups of tensors of a checkpoint's quantized parameters.

    Args:
        methods: by parameter.
        embeddings: parameters that ids choose rows of.

    Attributes:
        schemes: of each module written as compressed-tensors has it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        methods: Mapping[str, Chosen],
        embeddings: Container[str],
        expected: Parameters,
        config: ModelConfig,
    ) -> None:
        self._embeddings = embeddings
        self._checkpoint, self._expected, self._config = checkpoint, expected, config
        self._methods: Mapping[str, Method] = {name: one.method for name, one in methods.items()}
        self.schemes: dict[str, Scheme] = {}

    def has(self, transfer: Transfer) -> bool:
        """Whether a target is quantized."""
        return any(target in self._methods for target in transfer.targets)

    def check_experts(self, transfers: Sequence[Transfer]) -> None:
        """Refuse experts of several methods: readers take what one is for all.

        Raises:
            ConfigError: there are some, the first two are named.
        """
        first: dict[Method | None, str] = {}
        for transfer in transfers:
            if isinstance(transfer.operation, StackExperts):
                first.setdefault(self._methods.get(transfer.targets[0]), transfer.targets[0])
        if len(first) > 1:
            one, other, *_ = first.values()
            raise unsaid(f"parameter {one}", f"is of experts, and so is {other}, which is quantized otherwise")

    def restored(self, transfer: Transfer, dtype: str) -> Group:
        """The source's tensors of restored weights, in a dtype by name."""
        import torch

        from bestiary.core.quant.tensors import QuantizedTensors

        weights, shapes = self._checkpoint.weights, self._expected.shapes
        tensors = QuantizedTensors(weights, weights.entries, self._methods, shapes, torch.device("cpu"))

        def make() -> list[Tensor]:
            found = [cast(tensors.tensor(name), dtype, f"parameter {name}") for name in transfer.targets]
            return transfer.operation.reverse(found, self._config)

        made = transfer.operation.source_shapes([shapes[name] for name in transfer.targets])
        slots = tuple(Slot(name, dtype, shape) for name, shape in zip(transfer.sources, made, strict=True))
        return Group(slots, make, ", ".join(transfer.targets))

    def compressed(self, transfer: Transfer) -> list[Group]:
        """The tensors of the source's modules, one group for each kind.

        Raises:
            ConfigError: compressed-tensors can't say what the method does, or the source has the weight in another form.
        """
        self._check(transfer)
        target, *_ = transfer.targets
        shape, *_ = transfer.operation.source_shapes([self._expected.shapes[name] for name in transfer.targets])
        modules = [name.removesuffix(_WEIGHT) for name in transfer.sources]
        expert, subject = isinstance(transfer.operation, StackExperts), f"parameter {target}"
        scheme = scheme_of(self._methods[target], shape, subject, expert=expert)
        self.schemes |= dict.fromkeys(modules, scheme)
        layout = self._methods[target].layout(shape)
        stored = {part: (one.dtype, one.shape(shape)) for part, one in layout.items()}
        return [self._group(transfer, modules, one) for one in tensors_of(scheme, stored, shape)]

    def _group(self, transfer: Transfer, modules: list[str], one: Tensors) -> Group:
        from bestiary.core.quant.tensors import stored_name

        def make() -> list[Tensor]:
            if one.part is None:
                return [one.make(None) for _ in modules]
            stored = [self._checkpoint.weights.tensor(stored_name(name, one.part)) for name in transfer.targets]
            return [one.make(tensor) for tensor in transfer.operation.reverse(stored, self._config)]

        slots = tuple(Slot(f"{module}.{one.name}", one.dtype, one.shape) for module in modules)
        return Group(slots, make, ", ".join(transfer.targets))

    def _check(self, transfer: Transfer) -> None:
        """Refuse what is no matrix of its own in the source, and rows that move apart from their scales."""
        target, *others = transfer.targets
        subject, method = f"parameter {target}", self._methods.get(target)
        shapes = [self._expected.shapes[name] for name in transfer.targets]
        if any(self._methods.get(other) != method for other in others) or method is None:
            raise unsaid(subject, f"is one tensor with {others[0]} in the source, which is quantized otherwise")
        if target in self._embeddings:
            raise unsaid(subject, "is an embedding, and transformers loads quantized linear modules alone")
        together = isinstance(transfer.operation, Copy | StackExperts)
        layout = method.layout(shapes[0]).values()
        if not transfer.operation.rowwise or not (together or all(one.block[0] == 1 for one in layout)):
            raise unsaid(subject, "is stored in the source in an order of rows or columns that its scales don't follow")
        matrices = all(len(shape) == 2 for shape in transfer.operation.source_shapes(shapes))
        if not matrices or not all(name.endswith(_WEIGHT) for name in transfer.sources):
            raise unsaid(subject, "is not the weight of a module with one matrix in the source", transfer.sources[0])
