"""The SDK's own ops, kernels and fusions, registered through the same hooks as everyone's; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bestiary import Fusion, Kernel, Op, Reader, hookimpl
from bestiary.core.kernels import (
    invariant_workspace,
    moe_workspace,
    quantized_cache_workspace,
    quantized_workspace,
    workspace,
)
from bestiary.spec import Call, Quantization

_OPS = {
    "activation": ("gated_activation", "sigmoid_gate"),
    "attention": ("kv_write", "paged_attention", "rope_kv_write"),
    "collective": ("all_gather", "all_reduce", "receive", "send"),
    "elementwise": ("add", "mul", "select_rows"),
    "linear": ("embedding", "embedding_shard", "linear", "logits"),
    "moe": ("moe", "moe_route"),
    "norm": ("add_rms_norm", "rms_norm"),
    "quantized_cache": ("quantized_kv_write", "quantized_paged_attention", "rope_quantized_kv_write"),
    "quantized": ("dequantize", "quantized_embedding", "quantized_linear", "quantized_logits", "quantized_moe"),
    "quantized_rows": ("quantize_rows", "quantize_with", "scaled_linear"),
    "rotary": ("rope", "rotary_table"),
}
_KERNELS: dict[str, dict[str, Callable[[Call], int]]] = {
    "dense": {
        "add": workspace.elementwise,
        "mul": workspace.elementwise,
        "select_rows": workspace.nothing,
        "embedding": workspace.embedding,
        "linear": workspace.linear,
        "logits": workspace.logits,
        "rms_norm": workspace.norm,
        "add_rms_norm": workspace.norm,
        "gated_activation": workspace.gated_activation,
        "sigmoid_gate": workspace.sigmoid_gate,
    },
    "moe": {"moe_route": moe_workspace.moe_route},
    "attention": {
        "rope": workspace.rope,
        "kv_write": workspace.kv_write,
        "rope_kv_write": workspace.rope_kv_write,
        "paged_attention": workspace.paged_attention,
    },
    "quantized_cache": {
        "quantized_kv_write": quantized_cache_workspace.quantized_kv_write,
        "rope_quantized_kv_write": quantized_cache_workspace.rope_quantized_kv_write,
        "quantized_paged_attention": quantized_cache_workspace.quantized_paged_attention,
    },
    "quantized": {
        "dequantize": quantized_workspace.dequantize,
        "quantized_embedding": quantized_workspace.quantized_embedding,
        "quantized_linear": quantized_workspace.quantized_linear,
        "quantized_logits": quantized_workspace.quantized_linear,
        "quantize_rows": quantized_workspace.quantize_rows,
        "quantize_with": quantized_workspace.quantize_with,
        "scaled_linear": quantized_workspace.scaled_linear,
    },
}
#: Of those, the kernels that move data or round once at each step: a row's result depends on that row alone.
_ROW_BY_ROW = (
    *("add", "mul", "select_rows", "embedding", "rope", "kv_write", "rope_kv_write"),
    *("quantized_kv_write", "rope_quantized_kv_write"),
    *("dequantize", "quantized_embedding", "quantize_rows", "quantize_with"),
)
_INVARIANT: dict[str, dict[str, Callable[[Call], int]]] = {
    "invariant": {
        "linear": invariant_workspace.linear,
        "logits": invariant_workspace.logits,
        "rms_norm": invariant_workspace.norm,
        "add_rms_norm": invariant_workspace.norm,
        "gated_activation": invariant_workspace.gated_activation,
        "sigmoid_gate": invariant_workspace.sigmoid_gate,
        "rotary_table": invariant_workspace.rotary_table,
    },
    "invariant_moe": {"moe_route": invariant_workspace.moe_route, "moe": moe_workspace.invariant},
    "invariant_attention": {"paged_attention": invariant_workspace.paged_attention},
    "invariant_quantized_cache": {"quantized_paged_attention": quantized_cache_workspace.invariant},
}
#: Of those, the ones that list their tiles on the host.
_TILED = ("paged_attention", "quantized_paged_attention", "moe")
_ON_HOST: dict[str, Any] = {"graph_safe": False}  # it lists the experts' tiles on the host
_PACKED: dict[str, Any] = {"pack": "bestiary.core.kernels.moe:pack"}
_SIXTEEN_BIT: dict[str, Any] = {"supports": moe_workspace.sixteen_bit_on_processor}
_DETERMINISTIC: dict[str, Any] = {"batch_invariant": True, "deterministic_only": True}
#: Kernels of ``moe`` beside the invariant one: the function, and what of the descriptor is not the default.
_MOE: dict[str, tuple[str, dict[str, Any]]] = {
    "torch": ("moe:moe", {"supports": moe_workspace.on_processor, "workspace": moe_workspace.moe, **_ON_HOST}),
    "widened": ("moe:moe_widened", {"workspace": moe_workspace.moe_widened, **_SIXTEEN_BIT, **_ON_HOST}),
    "grouped": (
        "moe:moe_grouped",
        {
            "supports": moe_workspace.grouped,
            "requires": "torch>=2.11",
            "workspace": moe_workspace.moe_grouped,
            **_PACKED,
        },
    ),
    "dense": ("moe:moe_dense", {"supports": moe_workspace.dense, "workspace": moe_workspace.moe_dense, **_PACKED}),
    "invariant_widened": (
        "invariant_moe:moe_widened",
        {"workspace": moe_workspace.invariant_widened, **_SIXTEEN_BIT, **_ON_HOST, **_DETERMINISTIC},
    ),
}
#: Kernels of quantized weights beside the plain ones: op, function, and the descriptor.
_QUANTIZED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "quantized_linear",
        "invariant_linear",
        {"name": "invariant", "workspace": quantized_workspace.quantized_linear, **_DETERMINISTIC},
    ),
    (
        "quantized_logits",
        "invariant_logits",
        {"name": "invariant", "workspace": quantized_workspace.quantized_linear, **_DETERMINISTIC},
    ),
    ("quantized_moe", "quantized_moe", {"name": "torch", "workspace": quantized_workspace.quantized_moe, **_ON_HOST}),
    (
        "scaled_linear",
        "scaled_linear_int8",
        {
            "name": "integers",
            "supports": quantized_workspace.whole_rows_int8,
            "workspace": quantized_workspace.scaled_linear_int8,
            "batch_invariant": True,
        },
    ),
)


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    for module, names in _OPS.items():
        for name in names:
            register(Op(name=name, declaration=f"bestiary.core.ops.{module}:{name}"))


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    for module, kernels in _KERNELS.items():
        for name, takes in kernels.items():
            run = f"bestiary.core.kernels.{module}:{name}"
            register(Kernel(op=name, name="torch", run=run, batch_invariant=name in _ROW_BY_ROW, workspace=takes))
    for module, takers in _INVARIANT.items():
        for name, own in takers.items():
            run = f"bestiary.core.kernels.{module}:{name}"
            register(
                Kernel(
                    op=name,
                    name="invariant",
                    run=run,
                    batch_invariant=True,
                    deterministic_only=name != "rotary_table",  # which is no slower than the reference
                    graph_safe=name not in _TILED,
                    workspace=own,
                )
            )
    for module, name, taken, fields in (
        ("dense", "widened", workspace.linear_widened, {}),
        ("invariant", "invariant_widened", invariant_workspace.linear_widened, _DETERMINISTIC),
    ):
        run = f"bestiary.core.kernels.{module}:linear_widened"
        register(Kernel(op="linear", name=name, run=run, workspace=taken, **_SIXTEEN_BIT, **fields))
    for name, run, kernel in _QUANTIZED:
        place = f"bestiary.core.kernels.quantized:{run}"
        register(Kernel(op=name, run=place, **kernel))
    for name, (place, said) in _MOE.items():
        register(Kernel(op="moe", name=name, run=f"bestiary.core.kernels.{place}", **said))


@hookimpl
def bestiary_register_fusions(register: Callable[[Fusion], None]) -> None:
    register(Fusion(name="residual_norm", op="add_rms_norm"))
    register(Fusion(name="rotary_cache", op="rope_kv_write"))
    register(Fusion(name="rotary_quantized_cache", op="rope_quantized_kv_write"))
    for read in ("linear", "logits", "embedding", "moe"):
        register(Fusion(name=f"quantized_{read}", op=f"quantized_{read}"))


@hookimpl
def bestiary_register_quantizations(register: Callable[[Quantization], None]) -> None:
    for name, method in (("int8", "Int8"), ("int4", "Int4"), ("w8a8", "W8A8"), ("fp8", "FP8")):
        register(Quantization(name=name, method=f"bestiary.core.quant.methods:{method}"))


@hookimpl
def bestiary_register_readers(register: Callable[[Reader], None]) -> None:
    register(Reader(name="hf", sniff="bestiary.converters.hf:sniff", reader="bestiary.converters.hf:HFSource"))
    register(Reader(name="gguf", sniff="bestiary.converters.gguf:sniff", reader="bestiary.converters.gguf:GGUFSource"))
