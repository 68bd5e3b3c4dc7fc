{% set d = cookiecutter._draft %}
"""The weight map of {{ cookiecutter.__class }}: bestiary's modules → those of the Hugging Face model."""

from bestiary.converters import WeightMap{% for one in d.operations %}, {{ one }}{% endfor %}


L, M = "layers.{}", "{{ d.prefix }}"

HF = WeightMap(
    {
{% for zoo, source in d.rows %}
        {{ zoo }}: {{ source }},
{% endfor %}
    },
{% if d.drop | length == 1 %}
    drop=({{ d.drop[0] }},),
{% elif d.drop %}
    drop=(
{% for source in d.drop %}
        {{ source }},
{% endfor %}
    ),
{% endif %}
)
