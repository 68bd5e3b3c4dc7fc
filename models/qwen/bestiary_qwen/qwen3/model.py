"""Qwen3 (Qwen team 2025): as Qwen2, with norms on each head's queries and keys in place of their biases."""

from torch import Tensor, nn

from bestiary.layers import Attention, CausalLM, Embedding, GatedMLP, Head, LayerStack, RMSNorm, Step

from .config import Qwen3Config


class Qwen3Layer(nn.Module):
    def __init__(self, c: Qwen3Config, index: int) -> None:
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
        self.mlp = GatedMLP(c.hidden_size, c.intermediate_size, act="silu")

    def forward(self, x: Tensor, step: Step) -> Tensor:  # [T, hidden]
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))


class Qwen3(CausalLM):
    def __init__(self, c: Qwen3Config) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: Qwen3Layer(c, index))
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.head = Head(c.hidden_size, c.vocab_size, tied=self.embed if c.tie_word_embeddings else None)
