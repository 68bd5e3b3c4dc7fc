"""The SDK's own ops, kernels and fusions, registered through the same hooks as everyone's; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from bestiary import Fusion, Kernel, Op, Reader, hookimpl
from bestiary.core.kernels import invariant_workspace, moe_workspace, workspace
from bestiary.spec import Call

_OPS = {
    "activation": ("gated_activation", "sigmoid_gate"),
    "attention": ("kv_write", "paged_attention", "rope_kv_write"),
    "collective": ("all_gather", "all_reduce", "receive", "send"),
    "elementwise": ("add", "mul", "select_rows"),
    "linear": ("embedding", "embedding_shard", "linear", "logits"),
    "moe": ("moe", "moe_route"),
    "norm": ("add_rms_norm", "rms_norm"),
    "rotary": ("rope", "rotary_table"),
}
_KERNELS: dict[str, dict[str, Callable[[Call], int]]] = {
    "dense": {
        "add": workspace.nothing,
        "mul": workspace.nothing,
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
}
#: Of those, the kernels that move data or round once at each step: a row's result depends on that row alone.
_ROW_BY_ROW = ("add", "mul", "select_rows", "embedding", "rope", "kv_write", "rope_kv_write")
_INVARIANT: dict[str, dict[str, Callable[[Call], int] | None]] = {
    "invariant": {
        "linear": invariant_workspace.linear,
        "logits": invariant_workspace.logits,
        "rms_norm": invariant_workspace.norm,
        "add_rms_norm": invariant_workspace.norm,
        "gated_activation": invariant_workspace.gated_activation,
        "sigmoid_gate": invariant_workspace.sigmoid_gate,
        "rotary_table": None,
    },
    "invariant_moe": {"moe_route": invariant_workspace.moe_route, "moe": moe_workspace.invariant},
    "invariant_attention": {"paged_attention": invariant_workspace.paged_attention},
}
_MOE = (
    Kernel(
        op="moe",
        name="torch",
        run="bestiary.core.kernels.moe:moe",
        supports=moe_workspace.on_processor,
        graph_safe=False,
        workspace=moe_workspace.moe,
    ),
    Kernel(
        op="moe",
        name="widened",
        run="bestiary.core.kernels.moe:moe_widened",
        supports=moe_workspace.sixteen_bit_on_processor,
        graph_safe=False,
        workspace=moe_workspace.moe_widened,
    ),
    Kernel(
        op="moe",
        name="grouped",
        run="bestiary.core.kernels.moe:moe_grouped",
        supports=moe_workspace.grouped,
        pack="bestiary.core.kernels.moe:pack",
        requires="torch>=2.11",
        workspace=moe_workspace.moe_grouped,
    ),
    Kernel(
        op="moe",
        name="dense",
        run="bestiary.core.kernels.moe:moe_dense",
        supports=moe_workspace.dense,
        pack="bestiary.core.kernels.moe:pack",
        workspace=moe_workspace.moe_dense,
    ),
    Kernel(
        op="moe",
        name="invariant_widened",
        run="bestiary.core.kernels.invariant_moe:moe_widened",
        supports=moe_workspace.sixteen_bit_on_processor,
        batch_invariant=True,
        deterministic_only=True,
        graph_safe=False,
        workspace=moe_workspace.invariant_widened,
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
                    graph_safe=name not in ("paged_attention", "moe"),  # they list the tiles on the host
                    workspace=own,
                )
            )
    for module, name in (("dense", "widened"), ("invariant", "invariant_widened")):
        register(
            Kernel(
                op="linear",
                name=name,
                run=f"bestiary.core.kernels.{module}:linear_widened",
                supports=moe_workspace.sixteen_bit_on_processor,
                batch_invariant=module == "invariant",
                deterministic_only=module == "invariant",
                workspace=workspace.linear_widened,
            )
        )
    for kernel in _MOE:
        register(kernel)


@hookimpl
def bestiary_register_fusions(register: Callable[[Fusion], None]) -> None:
    register(Fusion(name="residual_norm", op="add_rms_norm"))
    register(Fusion(name="rotary_cache", op="rope_kv_write"))


@hookimpl
def bestiary_register_readers(register: Callable[[Reader], None]) -> None:
    register(Reader(name="hf", sniff="bestiary.converters.hf:sniff", reader="bestiary.converters.hf:HFSource"))
    register(Reader(name="gguf", sniff="bestiary.converters.gguf:sniff", reader="bestiary.converters.gguf:GGUFSource"))
