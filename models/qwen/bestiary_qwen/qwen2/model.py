"""Qwen2 (Qwen team 2024): pre-norm layers, rotary grouped-query attention with biased q, k and v, a gated MLP."""

from torch import Tensor, nn

from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, RMSNorm, Step

from .config import Qwen2Config


class Qwen2Layer(nn.Module):
    def __init__(self, c: Qwen2Config, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.attention = Attention(
            c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head,
            rope=c.rope,
            bias=True,
            output_bias=False,
            window=c.window(index),
        )
        self.mlp_norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, act="silu")

    def forward(self, x: Tensor, step: Step) -> Tensor:  # [T, hidden]
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))


class Qwen2(CausalLM):
    def __init__(self, c: Qwen2Config) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: Qwen2Layer(c, index))
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.head = Head(c.hidden_size, c.vocab_size, tied=self.embed if c.tie_word_embeddings else None)
