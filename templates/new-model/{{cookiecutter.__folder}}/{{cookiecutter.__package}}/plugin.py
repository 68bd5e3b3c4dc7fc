"""Registration; imports nothing but bestiary."""

from collections.abc import Callable

from bestiary import Model, hookimpl


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    register(
        Model(
            name="{{ cookiecutter.name }}",
            architectures=("{{ cookiecutter.architecture }}",),
            config="{{ cookiecutter.__package }}.config:{{ cookiecutter.__class }}Config",
            model="{{ cookiecutter.__package }}.model:{{ cookiecutter.__class }}",
            weights={"hf": "{{ cookiecutter.__package }}.convert:HF"},
            conformance="{{ cookiecutter.__package }}.conformance:{{ cookiecutter.__class }}Conformance",
        )
    )
