"""Qwen3-MoE (Qwen team 2025): Qwen3's attention, experts in place of the MLP."""

from torch import Tensor, nn

from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, MoE, RMSNorm, Step

from .config import Qwen3MoeConfig


class Qwen3MoeLayer(nn.Module):
    def __init__(self, c: Qwen3MoeConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.attention = Attention(
            c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head,
            rope=c.rope,
            bias=c.attention_bias,
            window=c.window(index),
            q_norm=RMSNorm(c.head, eps=c.rms_norm_eps),
            k_norm=RMSNorm(c.head, eps=c.rms_norm_eps),
        )
        self.mlp_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.sparse = c.sparse(index)
        if self.sparse:
            self.moe = MoE(
                c.hidden_size,
                c.moe_intermediate_size,
                experts=c.num_experts,
                top_k=c.num_experts_per_tok,
                act="silu",
                renormalize=c.norm_topk_prob,
            )
        else:
            self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, act="silu")

    def forward(self, x: Tensor, step: Step) -> Tensor:  # [T, hidden]
        x = x + self.attention(self.attention_norm(x), step)
        read = self.mlp_norm(x)
        return x + (self.moe(read) if self.sparse else self.mlp(read))


class Qwen3Moe(CausalLM):
    def __init__(self, c: Qwen3MoeConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: Qwen3MoeLayer(c, index))
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.head = Head(c.hidden_size, c.vocab_size, tied=self.embed if c.tie_word_embeddings else None)
