"""The operations models are written in, and the way to declare new ones.

Calling an op runs its torch reference; while a model is being traced it records the call instead, and the build binds
the fastest kernel that is installed and right.
"""

from bestiary.core.ops.activation import gated_activation, sigmoid_gate
from bestiary.core.ops.attention import kv_write, paged_attention, rope_kv_write
from bestiary.core.ops.collective import Ranks, all_gather, all_reduce, receive, send
from bestiary.core.ops.cost import Cost
from bestiary.core.ops.declare import EXACT, ROUNDING, OpDeclaration, Tolerance, integers, normal, op
from bestiary.core.ops.elementwise import add, mul, select_rows
from bestiary.core.ops.linear import embedding, embedding_shard, linear, logits
from bestiary.core.ops.moe import moe, moe_route
from bestiary.core.ops.norm import add_rms_norm, rms_norm
from bestiary.core.ops.quantized import (
    dequantize,
    quantized_embedding,
    quantized_linear,
    quantized_logits,
    quantized_moe,
)
from bestiary.core.ops.quantized_cache import quantized_kv_write, quantized_paged_attention, rope_quantized_kv_write
from bestiary.core.ops.quantized_rows import quantize_rows, quantize_with, scaled_linear
from bestiary.core.ops.rotary import rope, rotary_table

__all__ = [
    "EXACT",
    "ROUNDING",
    "Cost",
    "OpDeclaration",
    "Ranks",
    "Tolerance",
    "add",
    "add_rms_norm",
    "all_gather",
    "all_reduce",
    "dequantize",
    "embedding",
    "embedding_shard",
    "gated_activation",
    "integers",
    "kv_write",
    "linear",
    "logits",
    "moe",
    "moe_route",
    "mul",
    "normal",
    "op",
    "paged_attention",
    "quantize_rows",
    "quantize_with",
    "quantized_embedding",
    "quantized_kv_write",
    "quantized_linear",
    "quantized_logits",
    "quantized_moe",
    "quantized_paged_attention",
    "receive",
    "rms_norm",
    "rope",
    "rope_kv_write",
    "rope_quantized_kv_write",
    "rotary_table",
    "scaled_linear",
    "select_rows",
    "send",
    "sigmoid_gate",
]
