"""Where no model is named: a decoder of sizes that many small models have, in the layers that most are made of."""

from __future__ import annotations

from torch import Tensor, nn

from bestiary.core.config import ModelConfig
from bestiary.core.engine.network import Network, make_network_of
from bestiary.core.engine.options import BuildOptions
from bestiary.core.plugins import PluginHost
from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, RMSNorm, Step

_VOCABULARY, _HIDDEN, _MLP, _HEADS, _KV_HEADS, _HEAD = 32_000, 1024, 2816, 16, 4, 64
_EPS = 1e-5


class _Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(_HIDDEN, eps=_EPS)
        self.attention = Attention(_HIDDEN, heads=_HEADS, kv_heads=_KV_HEADS, head_dim=_HEAD, rope=config.rope)
        self.mlp_norm = RMSNorm(_HIDDEN, eps=_EPS)
        self.mlp = GatedMLP(_HIDDEN, _MLP, act="silu")

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))


class _Decoder(CausalLM):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = Embedding(_VOCABULARY, _HIDDEN)
        self.layers = LayerStack(config.num_hidden_layers, lambda index: _Layer(config))
        self.norm = RMSNorm(_HIDDEN, eps=_EPS)
        self.head = Head(_HIDDEN, _VOCABULARY)


def typical_network(host: PluginHost, options: BuildOptions) -> Network:
    """Its program, as a build of it would make it; the dtype is the options'."""
    config = ModelConfig(vocab_size=_VOCABULARY, hidden_size=_HIDDEN, num_hidden_layers=2)
    return make_network_of(
        _Decoder, config, options, owner="a typical decoder", checkpoint_dtype=options.dtype, host=host
    )
