"""Qwen2-MoE (Qwen team 2024): Qwen2's attention; experts beside one that every token goes through, weighed by a gate."""

from torch import Tensor, nn

from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, MoE, RMSNorm, Step

from .config import Qwen2MoeConfig


class Qwen2MoeLayer(nn.Module):
    def __init__(self, c: Qwen2MoeConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.attention = Attention(
            c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head,
            rope=c.rope,
            bias=c.qkv_bias,
            output_bias=False,
            window=c.window(index),
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
                shared=GatedMLP(c.hidden_size, c.shared_expert_intermediate_size, act="silu"),
                shared_gate=True,
            )
        else:
            self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, act="silu")

    def forward(self, x: Tensor, step: Step) -> Tensor:  # [T, hidden]
        x = x + self.attention(self.attention_norm(x), step)
        read = self.mlp_norm(x)
        return x + (self.moe(read) if self.sparse else self.mlp(read))


class Qwen2Moe(CausalLM):
    def __init__(self, c: Qwen2MoeConfig) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: Qwen2MoeLayer(c, index))
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.head = Head(c.hidden_size, c.vocab_size, tied=self.embed if c.tie_word_embeddings else None)
