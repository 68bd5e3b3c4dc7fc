"""Registration; imports nothing but bestiary."""

from collections.abc import Callable

from bestiary import Command, hookimpl


@hookimpl
def bestiary_register_commands(register: Callable[[Command], None]) -> None:
    register(
        Command(
            name="eval",
            help="Score an engine on lm-eval's tasks or local questions, alone or against another.",
            app="bestiary_eval.command:evaluate",
        )
    )
