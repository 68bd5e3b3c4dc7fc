"""A family with parameters of no dimensions: a gain beside divided products, one on a branch, and one of a product's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bestiary import Model, hookimpl
from bestiary.converters import WeightMap
from bestiary.layers import CausalLM, Embedding, GatedMLP, Head, LayerStack, Linear, RMSNorm, Step
from bestiary.layers.shard import Column, Row
from bestiary.spec import ModelConfig
from bestiary.testing import ModelConformance

TINY: dict[str, Any] = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
FEATURES = 32


class Scaled(Linear):
    """A product that is cut among ranks, times a number that every rank has."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, shard=Column(outputs))
        self.scale = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Layer(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm, self.mlp_norm = RMSNorm(hidden, eps=1e-6), RMSNorm(hidden, eps=1e-6)
        self.up = Scaled(hidden, FEATURES)
        self.down = Linear(FEATURES, hidden, shard=Row(FEATURES))
        self.mlp = GatedMLP(hidden, FEATURES, act="silu")
        self.gain, self.shift = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.down(self.up(self.norm(self.shift + x)))
        return x + self.mlp(self.mlp_norm(x)) * self.gain


class Scalars(CausalLM):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: Layer(c.hidden_size))
        self.norm = RMSNorm(c.hidden_size, eps=1e-6)
        self.head = Head(c.hidden_size, c.vocab_size)


_PARTS = ("norm", "mlp_norm", "up", "down", "mlp.gate", "mlp.up", "mlp.down", "gain", "shift")
HF = WeightMap(
    {**{name: name for name in ("embed", "norm", "head")}, **{f"layers.{{}}.{p}": f"layers.{{}}.{p}" for p in _PARTS}}
)


class _PlainLayer(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.RMSNorm(hidden, eps=1e-6), nn.RMSNorm(hidden, eps=1e-6)
        self.up, self.down = nn.Linear(hidden, FEATURES, bias=False), nn.Linear(FEATURES, hidden, bias=False)
        self.up.scale = nn.Parameter(torch.ones(()))
        self.mlp = nn.ModuleDict(
            {
                "gate": nn.Linear(hidden, FEATURES, bias=False),
                "up": nn.Linear(hidden, FEATURES, bias=False),
                "down": nn.Linear(FEATURES, hidden, bias=False),
            }
        )
        self.gain, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(self.up(self.norm(x + self.shift)) * self.up.scale)
        y = self.mlp_norm(x)
        gated = nn.functional.silu(self.mlp["gate"](y)) * self.mlp["up"](y)
        made: Tensor = x + self.mlp["down"](gated) * self.gain
        return made


class Plain(nn.Module):
    """The same in plain torch."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, vocabulary = config["hidden_size"], config["vocab_size"]
        self.embed = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(_PlainLayer(hidden) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        made: Tensor = self.head(self.norm(x))
        return made


class ScalarConformance(ModelConformance):
    model = "scalars"
    configs: ClassVar[dict[str, dict[str, Any]]] = {"tiny": TINY}
    reference: ClassVar[Any] = Plain
    waived: ClassVar[dict[str, str]] = {
        "test_impossible_keys": "a config of sizes alone, which others test",
        **dict.fromkeys(("test_prefix_reuse", "test_preemption", "test_deterministic"), "it keeps nothing of a prefix"),
    }


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    register(
        Model(
            name="scalars",
            architectures=("ScalarsForCausalLM",),
            config="bestiary.spec:ModelConfig",
            model=f"{__name__}:Scalars",
            weights={"hf": f"{__name__}:HF"},
            conformance=f"{__name__}:ScalarConformance",
        )
    )
