"""Registration; imports nothing but bestiary."""

from collections.abc import Callable

from bestiary import Model, Op, hookimpl


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    register(
        Model(
            name="transformers",
            architectures=(),
            fallback="bestiary_transformers.config:why_not",
            config="bestiary_transformers.config:TransformersConfig",
            model="bestiary_transformers.model:Wrapped",
            weights={"hf": "bestiary_transformers.convert:hf"},
            conformance="bestiary_transformers.conformance:TransformersConformance",
        )
    )


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    register(Op(name="transformers::forward", declaration="bestiary_transformers.op:forward"))
