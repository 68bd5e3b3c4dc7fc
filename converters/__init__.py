"""Reading foreign checkpoints, the weight-map language, and writing: what a model plugin's ``convert.py`` needs."""

if __name__ != "bestiary.converters":
    raise ImportError("import bestiary.converters, not the folder converters")

from bestiary.converters.operations import Operation, permute_rope, split, stack_experts, transpose
from bestiary.converters.source import GGUF, Source, SourceTensor
from bestiary.converters.weight_map import WeightMap

__all__ = [
    "GGUF",
    "Operation",
    "Source",
    "SourceTensor",
    "WeightMap",
    "permute_rope",
    "split",
    "stack_experts",
    "transpose",
]
