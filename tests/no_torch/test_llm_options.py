"""Wrong types for ``LLM``'s arguments are sentences, before anything is looked for or loaded."""

from types import ModuleType
from typing import Any

import pytest

from bestiary import ConfigError
from bestiary.core.llm_options import check_options

GOOD: dict[str, Any] = {
    "plugins": (), "prefer": None, "kernels": None, "lock": None, "progress": None, "flags": {"reference": False},
}  # fmt: skip


class Reports:
    def start(self, step: str, total: int | None, unit: str) -> None: ...
    def advance(self, amount: int) -> None: ...
    def finish(self, note: str) -> None: ...


@pytest.mark.parametrize(
    ("field", "value", "found", "expected"),
    [
        ("plugins", "my_plugin", "str 'my_plugin'", "a list of modules"),
        ("plugins", 3, "int 3", "a list of modules"),
        ("plugins", {"a": 1}, "dict", "a list of modules"),
        ("plugins", ModuleType("m"), "module", "a list of modules"),
        ("prefer", "bad", "str 'bad'", "a dict from names to names"),
        ("prefer", {"a": 1}, "dict", "a dict from names to names"),
        ("kernels", 7, "int 7", "a dict from names to names"),
        ("kernels", ["rms_norm=torch"], "list", "a dict from names to names"),
        ("lock", 1, "int 1", "the path of a lock file"),
        ("progress", 5, "int 5", "an object with the methods start, advance and finish"),
        ("flags", {"reference": "yes"}, "str 'yes'", "True or False"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field: str, value: Any, found: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_options(**{**GOOD, field: value})
    error = refused.value
    assert error.subject == (field if field != "flags" else "reference")
    assert error.found is not None and error.found.startswith(found)
    assert error.expected is not None and error.expected.startswith(expected) and error.hint


def test_what_is_right_passes() -> None:
    check_options(**GOOD)
    check_options(
        plugins=["a", ModuleType("m"), object()],
        prefer={"a": "b"},
        kernels={"rms_norm": "torch"},
        lock="some.lock",
        progress=Reports(),
        flags={"reference": True},
    )
