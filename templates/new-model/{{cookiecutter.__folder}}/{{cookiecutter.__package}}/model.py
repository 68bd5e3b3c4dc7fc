{% set d = cookiecutter._draft %}
{% set mixed = d.moe and d.moe.sparse %}
{% set index = d.window or mixed %}
{% if d.source %}
"""{{ cookiecutter.__class }}, drafted from the config and the tensor names of {{ d.source }}."""
{% else %}
"""{{ cookiecutter.__class }}: pre-norm layers, rotary grouped-query attention, a gated MLP."""
{% endif %}

from torch import Tensor, nn

from bestiary.layers import (
    Attention,
    CausalLM,
    Embedding,
{% if not d.moe or mixed or d.moe.shared %}
    GatedMLP,
{% endif %}
    Head,
    LayerStack,
{% if d.moe %}
    MoE,
{% endif %}
    RMSNorm,
    Step,
)

from .config import {{ cookiecutter.__class }}Config

{% macro mlp(size, pad) %}
GatedMLP(
{{ pad }}    c.hidden_size,
{{ pad }}    {{ size }},
{{ pad }}    act=c.hidden_act,
{{ pad }}    bias={{ d.mlp_bias }},
{{ pad }})
{%- endmacro %}
{% macro moe(pad) %}
MoE(
{{ pad }}    c.hidden_size,
{{ pad }}    c.{{ d.moe.intermediate }},
{{ pad }}    experts=c.{{ d.moe.experts }},
{{ pad }}    top_k=c.{{ d.moe.top_k }},
{{ pad }}    act=c.hidden_act,
{{ pad }}    scoring="{{ d.moe.scoring }}",
{{ pad }}    renormalize={{ d.moe.renormalize }},
{% if d.moe.scale %}
{{ pad }}    scale={{ d.moe.scale }},
{% endif %}
{% if d.moe.shared %}
{{ pad }}    shared={{ mlp(d.moe.shared, pad ~ '    ') }},
{{ pad }}    shared_gate={{ d.moe.shared_gate }},
{% endif %}
{{ pad }})
{%- endmacro %}

class {{ cookiecutter.__class }}Layer(nn.Module):
    def __init__(self, c: {{ cookiecutter.__class }}Config{% if index %}, index: int{% endif %}) -> None:
        super().__init__()
{% if 'attention_norm' in d.norms %}
        self.attention_norm = RMSNorm(c.hidden_size, eps=c.{{ d.eps }})
{% endif %}
        self.attention = Attention(
            c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head,
            rope=c.rope,
            bias={{ d.bias }},
{% if d.output_bias %}
            output_bias={{ d.output_bias }},
{% endif %}
{% if d.scale %}
            scale={{ d.scale }},
{% endif %}
{% if d.window %}
            window=c.window(index),
{% endif %}
{% if d.qk_norm %}
            q_norm=RMSNorm(c.head, eps=c.{{ d.eps }}),
            k_norm=RMSNorm(c.head, eps=c.{{ d.eps }}),
{% endif %}
        )
{% if 'post_attention_norm' in d.norms %}
        self.post_attention_norm = RMSNorm(c.hidden_size, eps=c.{{ d.eps }})
{% endif %}
{% if 'mlp_norm' in d.norms %}
        self.mlp_norm = RMSNorm(c.hidden_size, eps=c.{{ d.eps }})
{% endif %}
{% if mixed %}
        self.sparse = c.sparse(index)
        if self.sparse:
            self.moe = {{ moe('            ') }}
        else:
            self.mlp = {{ mlp('c.intermediate_size', '            ') }}
{% elif d.moe %}
        self.moe = {{ moe('        ') }}
{% else %}
        self.mlp = {{ mlp('c.intermediate_size', '        ') }}
{% endif %}
{% if 'post_mlp_norm' in d.norms %}
        self.post_mlp_norm = RMSNorm(c.hidden_size, eps=c.{{ d.eps }})
{% endif %}

    def forward(self, x: Tensor, step: Step) -> Tensor:  # [T, hidden]
{% set attended = 'self.attention(self.attention_norm(x), step)' if 'attention_norm' in d.norms else 'self.attention(x, step)' %}
{% set normed = 'self.mlp_norm(x)' if 'mlp_norm' in d.norms else 'x' %}
{% set mix = 'mix' if mixed else ('self.moe' if d.moe else 'self.mlp') %}
{% set mixed_in = mix ~ '(' ~ normed ~ ')' %}
        x = x + {{ 'self.post_attention_norm(' ~ attended ~ ')' if 'post_attention_norm' in d.norms else attended }}
{% if mixed %}
        mix = self.moe if self.sparse else self.mlp
{% endif %}
        return x + {{ 'self.post_mlp_norm(' ~ mixed_in ~ ')' if 'post_mlp_norm' in d.norms else mixed_in }}


class {{ cookiecutter.__class }}(CausalLM):
    def __init__(self, c: {{ cookiecutter.__class }}Config) -> None:
        super().__init__()
        self.embed = Embedding(c.vocab_size, c.hidden_size)
        self.layers = LayerStack(c.num_hidden_layers, lambda index: {{ cookiecutter.__class }}Layer(c{% if index %}, index{% endif %}))
        self.norm = RMSNorm(c.hidden_size, eps=c.{{ d.eps }})
        self.head = Head(c.hidden_size, c.vocab_size, tied=self.embed if c.tie_word_embeddings else None)
