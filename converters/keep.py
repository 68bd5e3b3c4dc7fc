"""Weights that a source has quantized, kept as they are: a row of the weight map acts on each of the stored tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bestiary.converters.source import QuantizedSource
from bestiary.converters.weight_map import Transfer
from bestiary.converters.write import Group, widest_first
from bestiary.core.checkpoint.safetensors import Slot
from bestiary.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.converters.source import Source
    from bestiary.core.config import ModelConfig
    from bestiary.core.plugins import PluginHost
    from bestiary.core.quant.choose import Chosen
    from bestiary.core.quant.layout import Shape

Kept = Mapping[str, "Chosen"]


def kept(
    transfers: Sequence[Transfer], shapes: Mapping[str, Shape], source: Source, host: PluginHost
) -> dict[str, Chosen]:
    """The method of each parameter whose source's values a quantized weight can hold.

    Those are matrices whose row of the weight map moves whole rows, and whose source tensors are all quantized alike.

    Raises:
        UsageError: the source's reader gives no quantized tensors.
    """
    from bestiary.core.quant.choose import methods_in

    if not isinstance(source, QuantizedSource):
        raise UsageError(
            "E-USE-KEEP", "option keep_quantized", "is for sources with quantized tensors, which this is none of",
            found=f"{source.name}, {source.format}", expected="a GGUF file",
        )  # fmt: skip
    records: dict[str, Any] = {}
    for transfer in transfers:
        first, *others = (source.method(name) for name in transfer.sources)
        matrices = all(len(shapes[target]) > 1 for target in transfer.targets)
        if first is not None and transfer.operation.rowwise and matrices and all(one == first for one in others):
            records |= dict.fromkeys(transfer.targets, first)
    return methods_in(records, host)


def kept_group(
    transfer: Transfer, shapes: Mapping[str, Shape], methods: Kept, source: QuantizedSource, config: ModelConfig
) -> Group:
    """The stored tensors of a transfer's targets, all of which are kept."""
    from bestiary.core.quant.tensors import stored_name

    layouts = [dict(widest_first(methods[name].method.layout(shapes[name]))) for name in transfer.targets]
    slots = tuple(
        Slot(stored_name(name, part), one.dtype, one.shape(shapes[name]))
        for name, layout in zip(transfer.targets, layouts, strict=True)
        for part, one in layout.items()
    )

    def make() -> list[Tensor]:
        found = [source.stored(name) for name in transfer.sources]
        made = {}
        for part, one in layouts[0].items():
            wanted = [one.shape(shapes[name]) for name in transfer.targets]
            made[part] = transfer.operation.forward([tensors[part] for tensors in found], wanted, config)
        return [made[part][number].contiguous() for number, layout in enumerate(layouts) for part in layout]

    return Group(slots, make, ", ".join(f"{source.tensors[name].file}, tensor {name}" for name in transfer.sources))
