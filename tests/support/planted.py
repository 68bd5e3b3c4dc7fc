"""Families with one mistake each, and kernels and a fusion with one each. transformers has the right model: no mistake in it.

``write(name, folder)`` writes the Hugging Face directory of a family, random and small.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from bestiary import Kernel, Model, hookimpl, ops
from bestiary.converters import WeightMap, permute_rope
from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, RMSNorm, Step
from bestiary.ops import normal, op
from bestiary.spec import ModelConfig

L, M = "layers.{}", "model.layers.{}"


class Config(ModelConfig):
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    rms_norm_eps: float
    sliding_window: PositiveInt | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"


class Layer(nn.Module):
    """A right one; those below differ."""

    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        self.index = index
        self.attention_norm = RMSNorm(c.hidden_size, eps=self.eps(c))
        self.attention = Attention(
            c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            rope=c.rope,
            bias=self.bias(c),
            window=self.window(c),
        )
        self.mlp_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, act=self.act(c))

    def eps(self, c: Config) -> float:
        return c.rms_norm_eps

    def bias(self, c: Config) -> bool:
        return c.attention_bias

    def window(self, c: Config) -> int | None:
        return c.sliding_window

    def act(self, c: Config) -> str:
        return c.hidden_act

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))


class WrongEps(Layer):
    def eps(self, c: Config) -> float:
        return c.rms_norm_eps / 10


class NoBias(Layer):
    def bias(self, c: Config) -> bool:
        return False


class WideWindow(Layer):
    def window(self, c: Config) -> int | None:
        return (c.sliding_window or 0) + 1


class WrongAct(Layer):
    def act(self, c: Config) -> str:
        return "gelu"


class Normless(Layer):
    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(x)


class Halved(Layer):
    """Forgets digits between attention and MLP."""

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x).to(torch.bfloat16).to(torch.float32))


class NoResidual(Layer):
    """Forgets the sum after attention."""

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))


class Parallel(Layer):
    """Attention and MLP of the same tensor."""

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return x + self.attention(self.attention_norm(x), step) + self.mlp(self.mlp_norm(x))


class Unturned(Layer):
    """Knows no positions."""

    def __init__(self, c: Config, index: int) -> None:
        super().__init__(c, index)
        self.attention.rope = None


class Theta(Layer):
    """Turns by angles of its own."""

    def __init__(self, c: Config, index: int) -> None:
        super().__init__(c, index)
        assert c.rope is not None
        self.attention.rope = c.rope.model_copy(update={"theta": 500000.0})


class Planted(CausalLM):
    layer: type[Layer] = Layer

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: self.layer(c, index))
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.head = Head(c.hidden_size, c.vocab_size)


def rows(**changes: Any) -> dict[str, Any]:
    attention = {f"{L}.attention.{one}": f"{M}.self_attn.{one}_proj" for one in "qkvo"}
    mlp = {f"{L}.mlp.{one}": f"{M}.mlp.{one}_proj" for one in ("gate", "up", "down")}
    norms = {f"{L}.attention_norm": f"{M}.input_layernorm", f"{L}.mlp_norm": f"{M}.post_attention_layernorm"}
    ends = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    return {**ends, **norms, **attention, **mlp, **changes}


RIGHT = WeightMap(rows())
NO_BIAS = WeightMap(rows(), drop=tuple(f"{M}.self_attn.{one}_proj.bias" for one in "qkvo"))
KEYS_VALUES = WeightMap(
    rows(**{f"{L}.attention.k": f"{M}.self_attn.v_proj", f"{L}.attention.v": f"{M}.self_attn.k_proj"})
)
EXCHANGED = WeightMap(
    rows(**{f"{L}.attention.q": f"{M}.self_attn.k_proj", f"{L}.attention.k": f"{M}.self_attn.q_proj"})
)
GATE_UP = WeightMap(rows(**{f"{L}.mlp.gate": f"{M}.mlp.up_proj", f"{L}.mlp.up": f"{M}.mlp.gate_proj"}))
NORMS = WeightMap(
    rows(**{f"{L}.attention_norm": f"{M}.post_attention_layernorm", f"{L}.mlp_norm": f"{M}.input_layernorm"})
)
PAIRS = WeightMap(
    rows(
        **{
            f"{L}.attention.q": permute_rope(f"{M}.self_attn.q_proj", heads="num_attention_heads"),
            f"{L}.attention.k": permute_rope(f"{M}.self_attn.k_proj", heads="num_key_value_heads"),
        }
    )
)

#: By name: the layer, the weight map, and what transformers' config has besides the usual.
FAMILIES: dict[str, tuple[type[Layer], str, dict[str, Any]]] = {
    "right": (Layer, "RIGHT", {}),
    "windowed": (Layer, "RIGHT", {"model_type": "mistral", "sliding_window": 6}),
    "wrong_eps": (WrongEps, "RIGHT", {}),
    "no_bias": (NoBias, "NO_BIAS", {"attention_bias": True}),
    "wide_window": (WideWindow, "RIGHT", {"model_type": "mistral", "sliding_window": 6}),
    "wrong_act": (WrongAct, "RIGHT", {}),
    "normless": (Normless, "RIGHT", {}),
    "halved": (Halved, "RIGHT", {}),
    "no_residual": (NoResidual, "RIGHT", {}),
    "parallel": (Parallel, "RIGHT", {}),
    "unturned": (Unturned, "RIGHT", {}),
    "exchanged": (Layer, "EXCHANGED", {}),
    "keys_values": (Layer, "KEYS_VALUES", {}),
    "gate_up": (Layer, "GATE_UP", {}),
    "norms": (Layer, "NORMS", {}),
    "large": (Layer, "RIGHT", {}),  # more than float16 holds
    "theta": (Theta, "RIGHT", {}),
    "pairs": (Layer, "PAIRS", {}),
}
MODULES = {name: type(name, (Planted,), {"layer": layer}) for name, (layer, _, _) in FAMILIES.items()}
globals().update({f"module_{name}": module for name, module in MODULES.items()})


def write(name: str, folder: Path, layers: int = 2) -> Path:
    """The family's Hugging Face directory, in ``folder``."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    said: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, **FAMILIES[name][2],
    }  # fmt: skip
    torch.manual_seed(0)
    mistral = said.pop("model_type", "llama") == "mistral"
    model = MistralForCausalLM(MistralConfig(**said)) if mistral else LlamaForCausalLM(LlamaConfig(**said))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        if name == "large":
            for layer in model.model.layers:
                layer.mlp.up_proj.weight.mul_(1e5)
    target = folder / name
    model.save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "architectures": [architecture(name)]}))
    return target


def architecture(name: str) -> str:
    return f"Planted{name.title().replace('_', '')}ForCausalLM"


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)) * weight


def other_eps(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    out.copy_(_normed(x, weight, 1e-4))


def narrow(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    out.copy_(_normed(x, weight, eps).bfloat16())


def unwritten(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    out.zero_()


def not_a_number(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    out.copy_(_normed(x, weight, eps))
    out[0, 0] = float("nan")


def one_row(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    """Wrong where there is one row only, as in a decode."""
    torch.matmul(x, weight.t(), out=out)
    if bias is not None:
        out.add_(bias)
    if len(x) == 1:
        out.mul_(1.01)


def neighbours(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, out: Tensor
) -> None:
    """Turns pairs of neighbours in queries."""
    ops.rope_kv_write.reference(q, k, v, table, k_cache, v_cache, slots)
    cosine, sine = table.unsqueeze(1).chunk(2, -1)
    first, second = q.unflatten(-1, (-1, 2)).unbind(-1)
    out.copy_(torch.stack((first * cosine - second * sine, second * cosine + first * sine), -1).flatten(-2))


def no_window(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, query_starts: Tensor, kv_lengths: Tensor,
    scale: float, window: int | None, *, out: Tensor,
) -> None:  # fmt: skip
    """Forgets the window."""
    reference = ops.paged_attention.reference
    out.copy_(reference(q, k_cache, v_cache, block_tables, query_starts, kv_lengths, scale, None))


def clobber(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    """Right, and works in its input."""
    out.copy_(_normed(x, weight, eps))
    x.mul_(1.5)


def spoiling(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, out: Tensor
) -> None:
    """Right for its own tokens, and changes the first one's value in every decode."""
    out.copy_(ops.rope_kv_write.reference(q, k, v, table, k_cache, v_cache, slots))
    if len(q) == 1:
        v_cache.view(-1, *v_cache.shape[2:])[0] += 0.5


def warm(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, query_starts: Tensor, kv_lengths: Tensor, scale: float,
    window: int | None, kind: str, block_size: int, kv_heads: int, value_size: int, *, out: Tensor,
) -> None:  # fmt: skip
    """Scores a fifth too large, of a cache of few bits."""
    stored = (k_cache, v_cache, block_tables, query_starts, kv_lengths)
    reference = ops.quantized_paged_attention.reference
    out.copy_(reference(q, *stored, scale * 1.2, window, kind, block_size, kv_heads, value_size))


def loud_keys(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, kind: str,
    block_size: int, *, out: Tensor,
) -> None:  # fmt: skip
    """Stores keys that are a tenth too large, in few bits."""
    reference = ops.rope_quantized_kv_write.reference
    out.copy_(reference(q, k * 1.1, v, table, k_cache, v_cache, slots, kind, block_size))


def nibbles(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Any, columns: int, dtype: str,
    bias: Tensor | None = None, *, out: Tensor,
) -> None:  # fmt: skip
    """Takes a byte's two columns in the other order."""
    turned = (codes >> 4) | (codes << 4)
    out.copy_(ops.quantized_linear.reference(x, turned, scale, zero, block, columns, dtype, bias))


def far_scales(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, block: Any, columns: int, dtype: str,
    bias: Tensor | None = None, *, out: Tensor,
) -> None:  # fmt: skip
    """Takes the thirtieth scale of a row for all that follow."""
    near = scale.clone()
    near[:, 30:] = near[:, 29:30]
    out.copy_(ops.quantized_linear.reference(x, codes, near, zero, block, columns, dtype, bias))


def next_angles(positions: Tensor, lengths: Tensor, rope: Any, size: int, *, out: Tensor) -> None:
    """The angles of the positions after."""
    out.copy_(ops.rotary_table.reference(positions + 1, lengths, rope, size))


def one_percent(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    """All of it larger by less than 16-bit numbers round."""
    torch.matmul(x, weight.t(), out=out)
    if bias is not None:
        out.add_(bias)
    out.mul_(1.01)


def _gated_inputs(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    for tokens, features, size in ((1, 8, 6), (5, 12, 7)):
        gate, up = (normal(generator, tokens, features, dtype=dtype) for _ in "gu")
        yield gate, up, "silu", normal(generator, size, features, dtype=dtype), None


@op(
    name="planted::gated_down",
    inputs=_gated_inputs,
    fake=lambda gate, up, kind, weight, bias: gate.new_empty(len(gate), weight.shape[0]),
    rows=("gate", "up"),
)
def gated_down(gate: Tensor, up: Tensor, kind: str, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``linear(gated_activation(gate, up), weight, bias)``: gate, up ``[T, F]``, weight ``[H, F]`` → ``[T, H]``."""
    return ops.linear(ops.gated_activation(gate, up, kind), weight, bias)


def without_up(gate: Tensor, up: Tensor, kind: str, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """Drops the factor ``up``."""
    torch.matmul(torch.nn.functional.silu(gate), weight.t(), out=out)


def raising(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    raise RuntimeError("no such\ndevice thing")


def many_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    """Right, of more than one row."""
    if len(x) == 1:
        raise ValueError("one row is unsupported")
    torch.matmul(x, weight.t(), out=out)
    if bias is not None:
        out.add_(bias)


def no_angles(positions: Tensor, lengths: Tensor, rope: Any, size: int, *, out: Tensor) -> None:
    raise OSError("no table")


def no_sum(x: Tensor, y: Tensor, weight: Tensor, eps: float, *, out: Any) -> None:
    raise KeyError("y")


#: A kernel's name → its op.
KERNELS = {
    "other_eps": "rms_norm", "narrow": "rms_norm", "unwritten": "rms_norm", "not_a_number": "rms_norm",
    "one_row": "linear", "neighbours": "rope_kv_write", "no_window": "paged_attention", "clobber": "rms_norm",
    "spoiling": "rope_kv_write", "next_angles": "rotary_table", "one_percent": "linear",
    "warm": "quantized_paged_attention", "loud_keys": "rope_quantized_kv_write",
    "nibbles": "quantized_linear",
    "far_scales": "quantized_linear",
    "raising": "rms_norm", "many_rows": "linear", "no_angles": "rotary_table", "no_sum": "add_rms_norm",
}  # fmt: skip


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    for name, (_, weights, _) in FAMILIES.items():
        register(
            Model(
                name=f"planted_{name}",
                architectures=(architecture(name),),
                config=f"{__name__}:Config",
                model=f"{__name__}:module_{name}",
                weights={"hf": f"{__name__}:{weights}"},
            )
        )


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    for name, of in KERNELS.items():
        # By its name the last of all that can run a call: nobody gets one unasked.
        register(Kernel(op=of, name=f"wrong_{name}", run=f"{__name__}:{name}", batch_invariant=True))
