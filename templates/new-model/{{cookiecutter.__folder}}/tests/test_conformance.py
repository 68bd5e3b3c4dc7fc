"""The conformance kit on this plugin's own tiny models."""

from {{ cookiecutter.__package }}.conformance import {{ cookiecutter.__class }}Conformance


class Test{{ cookiecutter.__class }}({{ cookiecutter.__class }}Conformance):
    pass
