"""The layers that models are built from: nn.Modules over the ops, with the model's own sizes and no rank in sight."""

if __name__ != "bestiary.layers":
    raise ImportError("import bestiary.layers, not the folder layers")

from bestiary.layers.attention import Attention
from bestiary.layers.cache import CacheSpec, KVCache
from bestiary.layers.embedding import Embedding, Head
from bestiary.layers.linear import Linear
from bestiary.layers.mlp import GatedMLP
from bestiary.layers.model import CausalLM, LayerStack
from bestiary.layers.moe import MoE
from bestiary.layers.norm import RMSNorm
from bestiary.layers.shard import Column, Experts, Replicated, Row, Vocabulary
from bestiary.layers.step import LayerCache, Step

__all__ = [
    "Attention",
    "CacheSpec",
    "CausalLM",
    "Column",
    "Embedding",
    "Experts",
    "GatedMLP",
    "Head",
    "KVCache",
    "LayerCache",
    "LayerStack",
    "Linear",
    "MoE",
    "RMSNorm",
    "Replicated",
    "Row",
    "Step",
    "Vocabulary",
]
