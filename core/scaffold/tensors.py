"""Where a foreign model's tensors belong, told from their names and shapes alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bestiary.core.scaffold.sizes import Shape, Sizes

# Names come from files of strangers and end up in Python source: anything else is left for a person to look at.
_PLAIN = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")
_ATTENTION = r"(self_attn|self_attention|attention|attn)\."
_MLP = r"(mlp|feed_forward|ffn)\."
_MOE = r"(block_sparse_moe|mlp|feed_forward|moe)\."

#: Roles outside of the layers: zoo module → pattern of the whole name.
TOP = {
    "embed": r"(.*\.)?(embed_tokens|tok_embeddings|word_embeddings|embed_in|wte)",
    "norm": r"(\w+\.)?(norm|norm_f|ln_f|final_layernorm|final_layer_norm|final_norm)",
    "head": r"(.*\.)?(lm_head|embed_out|output)",
}
#: Roles in a layer: module below the layer → pattern of what follows the layer's index.
LAYER = {
    "attention_norm": r"input_layernorm|attention_norm|attn_norm|pre_attention_layernorm|ln_1|norm1",
    "attention": _ATTENTION + r"qkv_proj",
    "attention.q": _ATTENTION + r"(q_proj|wq|query)",
    "attention.k": _ATTENTION + r"(k_proj|wk|key)",
    "attention.v": _ATTENTION + r"(v_proj|wv|value)",
    "attention.o": _ATTENTION + r"(o_proj|wo|out_proj|dense|c_proj)",
    "attention.q_norm": _ATTENTION + r"(q_norm|q_layernorm|query_layernorm|query_norm)",
    "attention.k_norm": _ATTENTION + r"(k_norm|k_layernorm|key_layernorm|key_norm)",
    "post_attention_norm": r"post_self_attn_layernorm|post_attention_norm",
    "mlp_norm": r"post_attention_layernorm|pre_feedforward_layernorm|pre_mlp_layernorm|ffn_norm|mlp_norm|ln_2|norm2",
    "mlp": _MLP + r"gate_up_proj",
    "mlp.gate": _MLP + r"(gate_proj|w1)",
    "mlp.up": _MLP + r"(up_proj|w3)",
    "mlp.down": _MLP + r"(down_proj|w2)",
    "post_mlp_norm": r"post_feedforward_layernorm|post_mlp_layernorm|post_ffn_norm",
    "moe.router": _MOE + r"(gate|router)",
    "moe.experts.gate": _MOE + r"experts\.\{\}\.(gate_proj|w1)",
    "moe.experts.up": _MOE + r"experts\.\{\}\.(up_proj|w3)",
    "moe.experts.down": _MOE + r"experts\.\{\}\.(down_proj|w2)",
    "moe.shared_gate": _MOE + r"shared_expert_gate",
    "moe.shared.gate": _MOE + r"shared_experts?\.(gate_proj|w1)",
    "moe.shared.up": _MOE + r"shared_experts?\.(up_proj|w3)",
    "moe.shared.down": _MOE + r"shared_experts?\.(down_proj|w2)",
}
_SPLIT = {"attention": ("q", "k", "v"), "mlp": ("gate", "up")}
_PAIR = {"attention.q_norm", "attention.k_norm"}
_BIASED = {
    "attention",
    "attention.q",
    "attention.k",
    "attention.v",
    "attention.o",
    "mlp",
    "mlp.gate",
    "mlp.up",
    "mlp.down",
}
_DROPPED = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.masked_bias|attention\.masked_bias)")


class Left(NamedTuple):
    """Tensors of one name (``{}`` for indices) that found no place, and why."""

    name: str
    tensors: int
    shape: Shape
    reason: str


@dataclass
class Placement:
    """What became of the tensors.

    Args:
        total, placed: how many tensors there are, and have a row or are dropped on purpose.
        modules: zoo module (below ``layers.{}`` where it is one of a layer) → source module, ``{}`` for indices.
        biased: the zoo modules that have a bias.
        prefix: what a layer is called, ``model.layers.{}``.
        drop: source tensors that carry nothing.
        left: the rest.
        layers: how many layers have each module.
    """

    total: int = 0
    placed: int = 0
    modules: dict[str, str] = field(default_factory=dict)
    biased: set[str] = field(default_factory=set)
    prefix: str = "model.layers.{}"
    drop: list[str] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    layers: dict[str, set[int]] = field(default_factory=dict)


class _Group(NamedTuple):
    """Tensors whose names differ by indices: the module, what follows it (``weight``), shapes and layers."""

    module: str
    suffix: str
    shapes: Counter[Shape]
    layers: set[int]

    @property
    def name(self) -> str:
        return f"{self.module}.{self.suffix}" if self.suffix else self.module


def place(tensors: Mapping[str, Shape], sizes: Sizes) -> Placement:
    """Give each tensor its place in the zoo, or a reason why it has none."""
    found = Placement(total=len(tensors))
    groups = list(_grouped(tensors, found))
    prefixes = Counter(group.module.partition("{}")[0] for group in groups if "{}" in group.module)
    if prefixes:
        found.prefix = prefixes.most_common(1)[0][0] + "{}"
    post = {tail for group in groups if (tail := _tail(group.module, found.prefix)) is not None}
    # The weights first: a bias belongs where its weight went.
    for group in sorted(groups, key=lambda one: one.suffix == "bias"):
        _place(group, sizes, found, post)
    _take_back(groups, found)
    return found


def _take_back(groups: list[_Group], found: Placement) -> None:
    """A row is for a module that the template's model has: parts of experts, say, need experts."""
    lacking = {module: role for role, module in found.modules.items() if not _in_model(role, found.modules)}
    for group in groups:
        if (role := lacking.get(group.module)) is not None and (group.suffix == "weight" or role in found.biased):
            shape, count = group.shapes.most_common(1)[0][0], sum(group.shapes.values())
            found.left.append(Left(group.name, count, shape, "the parts that it belongs to were not recognised"))
            found.placed -= count
    for role in lacking.values():
        del found.modules[role], found.layers[role]
        found.biased.discard(role)


def _in_model(role: str, found: Mapping[str, str]) -> bool:
    experts = "moe.experts.gate" in found
    if role.startswith("moe.shared"):
        return experts and "moe.shared.gate" in found
    if role.startswith("moe."):
        return experts
    if role == "mlp" or role.startswith("mlp."):
        return not experts or "mlp.gate" in found
    return role not in _PAIR or found.keys() >= _PAIR


def _grouped(tensors: Mapping[str, Shape], found: Placement) -> Iterator[_Group]:
    groups: dict[tuple[str, str], _Group] = {}
    for name, shape in tensors.items():
        if not _PLAIN.fullmatch(name):
            found.left.append(
                Left(repr(name)[:80].replace("`", "'"), 1, shape, "its name is not made of letters, digits, _ and .")
            )
            continue
        module, _, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            module, suffix = name, ""
        template = _INDEX.sub("{}", module)
        group = groups.setdefault((template, suffix), _Group(template, suffix, Counter(), set()))
        group.shapes[shape] += 1
        if index := _INDEX.search(module):
            group.layers.add(int(index[0]))
    yield from groups.values()


def _tail(module: str, prefix: str) -> str | None:
    return module.removeprefix(prefix + ".") if module.startswith(prefix + ".") else None


def _role(module: str, prefix: str, tails: set[str]) -> str | None:
    tail = _tail(module, prefix)
    if tail is None:
        return next((role for role, pattern in TOP.items() if re.fullmatch(pattern, module)), None)
    if tail == "post_attention_layernorm" and tails & {"pre_feedforward_layernorm", "post_feedforward_layernorm"}:
        return "post_attention_norm"
    return next((role for role, pattern in LAYER.items() if re.fullmatch(pattern, tail)), None)


def _place(group: _Group, sizes: Sizes, found: Placement, tails: set[str]) -> None:
    shape, count = group.shapes.most_common(1)[0][0], sum(group.shapes.values())
    if _DROPPED.fullmatch(group.name):
        found.drop.append(group.name)
        found.placed += count
        return
    reason = _refusal(role := _role(group.module, found.prefix, tails), group, shape, sizes, found)
    if reason or role is None:
        found.left.append(Left(group.name, count, shape, reason or "nothing in the template has this part"))
        return
    found.placed += count
    if group.suffix == "bias":
        found.biased.add(role)
    else:
        found.modules[role] = group.module
        found.layers[role] = group.layers


def _refusal(role: str | None, group: _Group, shape: Shape, sizes: Sizes, found: Placement) -> str | None:
    """Why a group of tensors is not what its name says."""
    if role is None:
        return None
    if group.suffix not in ("weight", "bias"):
        return "it is a tensor without a module, and the template has a module there"
    if group.suffix == "bias":
        if role not in _BIASED:
            return f"the template's {role.rpartition('.')[2]} has no bias"
        return None if found.modules.get(role) == group.module else "its weight has no place"
    if role in found.modules:
        return f"{found.modules[role]} has its place"
    if len(group.shapes) > 1:
        return f"it has {len(group.shapes)} shapes in different layers"
    wanted = sizes.shape(role)
    if wanted is None:
        return "config.json does not say its sizes"
    if shape != wanted:
        hint = "; transpose(…) in convert.py reads it so" if shape == wanted[::-1] else ""
        return f"its shape would have to be {list(wanted)}{hint}"
    return None


def kv_heads(tensors: Mapping[str, Shape], sizes: Sizes) -> int | None:
    """Key-value heads as the key projections have them; None where they don't say so."""
    key = re.compile(rf"(.*\.)?\d+\.({LAYER['attention.k']})\.weight")
    features = {shape[0] for name, shape in tensors.items() if len(shape) == 2 and key.fullmatch(name)}
    if len(features) != 1 or not sizes.head or not sizes.heads:
        return None
    count, rest = divmod(features.pop(), sizes.head)
    return count if count and not rest and not sizes.heads % count else None


def rows(found: Placement) -> list[tuple[str, str]]:
    """The weight map's rows as Python source: zoo module, source. ``L`` and ``M`` stand for a layer's two names."""
    order = ["embed", *LAYER, "norm", "head"]
    return [_row(role, found) for role in order if role in found.modules]


def operations(found: Placement) -> list[str]:
    """The functions of ``bestiary.converters`` that the rows call."""
    used = {"split": any(role in found.modules for role in _SPLIT)}
    used["stack_experts"] = any(role.startswith("moe.experts.") for role in found.modules)
    return [name for name, needed in sorted(used.items()) if needed]


def source(name: str, found: Placement) -> str:
    """A source name as Python source."""
    tail = _tail(name, found.prefix)
    return f'"{name}"' if tail is None else 'f"{M}.' + tail.replace("{}", "{{}}") + '"'


def _row(role: str, found: Placement) -> tuple[str, str]:
    text = source(found.modules[role], found)
    if role in _SPLIT:
        text = f"split({text}, into=({', '.join(f'{chr(34)}{part}{chr(34)}' for part in _SPLIT[role])}))"
    elif role.startswith("moe.experts."):
        text = f'stack_experts({text[:-1]}.weight")'
    return (f'"{role}"' if role in TOP else f'f"{{L}}.{role}"'), text
