{% set d = cookiecutter._draft %}
"""What the tests and ``bestiary check {{ cookiecutter.name }}`` hold the plugin to: tiny models of these configs."""

from typing import Any, ClassVar

{% if d.reference or d.unwritten %}
from torch import nn

{% endif %}
from bestiary.testing import ModelConformance

{% if d.reference or d.unwritten %}

def reference(config: dict[str, Any]) -> nn.Module:
{% if d.unwritten %}
    """The model to compare with, in plain torch, from its own source."""
    why = "{{ d.unwritten }}"
    raise NotImplementedError(f"the reference in conformance.py is to be written from the model's source: {why}")
{% elif d.source %}
    """The model to compare with: the class that the config.json of the draft names."""
    from transformers import {{ d.reference }}

    said = {key: value for key, value in config.items() if key != "model_type"}
    made = {{ d.reference }}.config_class(**said)
    return {{ d.reference }}(made)
{% else %}
    """The model to compare with. It begins as transformers' Llama; put the architecture's own in its place."""
    from transformers import LlamaConfig, {{ d.reference }}

    return {{ d.reference }}(LlamaConfig(**{key: value for key, value in config.items() if key != "model_type"}))
{% endif %}

{% endif %}

class {{ cookiecutter.__class }}Conformance(ModelConformance):
    model = "{{ cookiecutter.name }}"
{% if d.reference or d.unwritten %}
    # mypy takes a function in a class variable for a method.
    reference = staticmethod(reference)  # type: ignore[assignment]
{% endif %}
    configs: ClassVar[dict[str, dict[str, Any]]] = {
{% for name, pairs in d.configs %}
        "{{ name }}": {
{% for key, value in pairs %}
            "{{ key }}": {{ value }},
{% endfor %}
        },
{% endfor %}
    }
