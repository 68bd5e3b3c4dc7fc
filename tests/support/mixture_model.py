"""A model plugin whose layers are attention and a mixture of experts in any of the layer's forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bestiary import Model, hookimpl
from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, MoE, RMSNorm, Step
from bestiary.spec import ModelConfig

#: One configuration for each way in which the layers differ.
CONFIGS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "as_they_are": {"renormalize": False},
    "sigmoid": {"scoring": "sigmoid", "scale": 2.5},
    "shared": {"shared": 24},
    "gated_shared": {"shared": 24, "shared_gate": True, "renormalize": False},
    "one": {"experts": 1, "top_k": 1},
    "all": {"experts": 3, "top_k": 3},
}


class MixtureConfig(ModelConfig):
    experts: int = 6
    top_k: int = 2
    features: int = 32
    scoring: str = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    shared: int = 0
    shared_gate: bool = False


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    register(
        Model(
            name="mixture",
            architectures=("MixtureForCausalLM",),
            config="mixture_model:MixtureConfig",
            model="mixture_model:Mixture",
            weights={},
        )
    )


def write_config(directory: Path, **said: Any) -> Path:
    """A directory that ``LLM(…, weights="random")`` opens as a mixture."""
    config = {
        "architectures": ["MixtureForCausalLM"],
        "model_type": "mixture",
        "vocab_size": 96,
        "hidden_size": 40,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
        "torch_dtype": "float32",
        **said,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


class MixtureLayer(nn.Module):
    def __init__(self, c: MixtureConfig) -> None:
        super().__init__()
        hidden = c.hidden_size
        self.attention_norm = RMSNorm(hidden, eps=1e-6)
        self.attention = Attention(hidden, heads=4, kv_heads=2, head_dim=10, rope=c.rope)
        self.moe_norm = RMSNorm(hidden, eps=1e-6)
        self.moe = MoE(
            hidden,
            c.features,
            experts=c.experts,
            top_k=c.top_k,
            act="silu",
            scoring=c.scoring,
            renormalize=c.renormalize,
            scale=c.scale,
            shared=GatedMLP(hidden, c.shared, act="silu") if c.shared else None,
            shared_gate=c.shared_gate,
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.moe(self.moe_norm(x))


class Mixture(CausalLM):
    def __init__(self, c: MixtureConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: MixtureLayer(c))
        self.norm = RMSNorm(c.hidden_size, eps=1e-6)
        self.head = Head(c.hidden_size, c.vocab_size)
