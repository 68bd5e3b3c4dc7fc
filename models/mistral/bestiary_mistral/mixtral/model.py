"""Mixtral (Jiang et al. 2024): pre-norm layers, grouped-query attention, and a mixture of gated MLPs."""

from torch import Tensor, nn

from bestiary.layers import Attention, CausalLM, Embedding, Head, LayerStack, MoE, RMSNorm, Step

from .config import MixtralConfig


class MixtralLayer(nn.Module):
    def __init__(self, c: MixtralConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.attention = Attention(
            c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head,
            rope=c.rope,
            window=c.sliding_window,
        )
        self.moe_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.moe = MoE(
            c.hidden_size,
            c.intermediate_size,
            experts=c.num_local_experts,
            top_k=c.num_experts_per_tok,
            act="silu",
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:  # [T, hidden]
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.moe(self.moe_norm(x))


class Mixtral(CausalLM):
    def __init__(self, c: MixtralConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: MixtralLayer(c))
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.head = Head(c.hidden_size, c.vocab_size, tied=self.embed if c.tie_word_embeddings else None)
