"""Registration; imports nothing but bestiary."""

from collections.abc import Callable

from bestiary import Kernel, Op, hookimpl


@hookimpl
def bestiary_register_ops(register: Callable[[Op], None]) -> None:
    register(
        Op(
            name="{{ cookiecutter.name }}::{{ cookiecutter.op }}",
            declaration="{{ cookiecutter.__package }}.ops:{{ cookiecutter.op }}",
        )
    )


@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    register(
        Kernel(
            op="{{ cookiecutter.name }}::{{ cookiecutter.op }}",
            name="torch",
            run="{{ cookiecutter.__package }}.kernels:{{ cookiecutter.op }}",
        )
    )
