{% set d = cookiecutter._draft %}
{% set types = d.fields | map(attribute=1) | join(' ') %}
"""The config of {{ cookiecutter.__class }}."""

from __future__ import annotations

{% set folds = d.spellings or d.window or d.rope %}
{% set heads = 'num_key_value_heads' in d.sizes | map(attribute=0) %}
{% if folds or d.neutral %}
from collections.abc import Mapping
{% endif %}
from typing import {% if folds or d.neutral %}Any, {% endif %}{% if d.theta or d.neutral or heads %}ClassVar, {% endif %}Literal{% if d.window or d.moe %}, Self{% endif %}


from pydantic import {% if 'NonNegativeInt' in types %}NonNegativeInt, {% endif %}PositiveFloat, PositiveInt{% if folds or d.moe %}, model_validator{% endif %}


{% if d.window or d.moe %}
from bestiary import ConfigError
{% endif %}
from bestiary.spec import GroupedQueryConfig
{% if d.spellings %}

# What this family's config.json calls the fields below.
SPELLINGS = {
{% for theirs, ours in d.spellings %}
    "{{ theirs }}": "{{ ours }}",
{% endfor %}
}
{% endif %}
{% if d.rope %}

# How it rotates where config.json does not say so, which it says by one of these keys.
ROPE = {{ d.rope }}
ROPE_KEYS = {"rope_parameters", "rope_scaling", "rope_theta"}
{% endif %}


class {{ cookiecutter.__class }}Config(GroupedQueryConfig):
    """``config.json`` of a ``{{ cookiecutter.architecture }}``."""

{% if d.neutral %}
    # Of the tensors: values that would be another model's are refused.
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
{% for key, value in d.neutral %}
        "{{ key }}": (None, {{ value }}),
{% endfor %}
    }
{% endif %}
{% if d.theta %}
    default_rope_theta: ClassVar[float] = {{ d.theta }}
{% endif %}
{% if heads %}
    one_kv_head_each: ClassVar[bool] = False
{% endif %}
{% if d.theta or d.neutral or heads %}

{% endif %}
{% for name, value in d.sizes %}
    {{ name }}: PositiveInt{{ ' | None' if name == 'head_dim' }} = {{ value }}
{% endfor %}
    intermediate_size: PositiveInt
    hidden_act: Literal["silu", "relu", "gelu", "gelu_pytorch_tanh"] = "{{ d.act }}"
    {{ d.eps }}: PositiveFloat = {{ d.eps_default }}
{% for name, type, default in d.fields %}
    {{ name }}: {{ type }}{% if default is not none %} = {{ default }}{% endif %}

{% endfor %}
    tie_word_embeddings: bool = {{ d.tied }}
{% if d.window %}

    def window(self, index: int) -> int | None:
        """Positions that layer ``index`` sees, its own included; None for all."""
        if not self.use_sliding_window:
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[index] == "sliding_attention" else None
{% if d.window.first %}
        return self.sliding_window if index >= self.max_window_layers else None
{% else %}
        return self.sliding_window
{% endif %}
{% endif %}
{% if d.moe and d.moe.sparse %}

    def sparse(self, index: int) -> bool:
        """Whether layer ``index`` has experts."""
        return {{ d.moe.sparse }}
{% endif %}
{% if folds %}

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
{% if d.spellings %}
        given = {SPELLINGS.get(key, key): value for key, value in raw.items()}
{% else %}
        given = dict(raw)
{% endif %}
{% if d.rope %}
        if not ROPE_KEYS & set(given):
            given["rope_parameters"] = ROPE
{% endif %}
{% if d.window %}
        # transformers writes a window that is not used as 0.
        if given.get("sliding_window") == 0 and not given.get("use_sliding_window"):
            given["sliding_window"] = None
{% endif %}
        return given
{% endif %}
{% if d.window or d.moe %}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
{% if d.window %}
        kinds = self.layer_types or ["full_attention"] * self.num_hidden_layers
        if len(kinds) != self.num_hidden_layers or set(kinds) - {"full_attention", "sliding_attention"}:
            raise _wrong("layer_types", f"is not one of two kinds for each of {self.num_hidden_layers} layers: {kinds}")
{% endif %}
{% if d.moe %}
        if self.{{ d.moe.top_k }} > self.{{ d.moe.experts }}:
            raise _wrong("{{ d.moe.top_k }}", f"is more than there are experts: {self.{{ d.moe.top_k }}}")
{% endif %}
        return self


def _wrong(field: str, problem: str) -> ConfigError:
    return ConfigError("E-CFG-ARITHMETIC", f"config.json, field {field}", problem)
{% endif %}
