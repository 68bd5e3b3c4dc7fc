"""What ``--log-level`` and ``BESTIARY_LOG`` say, and where the lines go."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bestiary import UsageError
from bestiary.core import logs
from bestiary.core.cli.main import invoke

TELL = """
import logging

def tell():
    for name in ("bestiary.runtime", "bestiary.plan"):
        for level in (5, 10, 20, 30, 40):
            logging.getLogger(name).log(level, "%s %d", name, level)
"""


@pytest.fixture(autouse=True)
def bestiary() -> Iterator[logging.Logger]:
    """The logger, without handlers, and afterwards as it was."""
    root = logging.getLogger("bestiary")
    handlers, level = list(root.handlers), root.level
    root.handlers.clear()
    yield root
    logs.configure(logs.LogLevels())  # forgets the levels of parts
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("text", "level", "loggers"),
    [
        ("debug", "debug", {}),
        ("TRACE", "trace", {}),
        ("warning,runtime=debug", "warning", {"bestiary.runtime": "debug"}),
        (" info , bestiary.engine = trace ", "info", {"bestiary.engine": "trace"}),
        ("runtime=debug,plan=info", "warning", {"bestiary.runtime": "debug", "bestiary.plan": "info"}),
        ("runtime=debug,error", "error", {"bestiary.runtime": "debug"}),
        ("bestiary=error", "error", {}),
    ],
)
def test_a_level_and_levels_of_parts(text: str, level: str, loggers: dict[str, str]) -> None:
    found = logs.parse(text, "it")
    assert (found.level, found.loggers) == (level, loggers)
    assert logs.parse(str(found), "it") == found


@pytest.mark.parametrize(
    "text",
    ["loud", "runtime=", "=debug", "debug,", "", "runtime=loud", "a b=debug", "debug,info", "runtime=debug,runtime=info",
     "bestiary.runtime=info,runtime=info", "debug,bestiary=info", "10", "../x=debug", "é\ud800=debug"],
)  # fmt: skip
def test_what_is_not_understood_is_one_sentence(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as raised:
        logs.parse(text, "BESTIARY_LOG")
    assert raised.value.code == "E-CLI-LOG" and str(raised.value).startswith("BESTIARY_LOG: ")
    if text:
        assert invoke(["--log-level", text, "plugins"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("bestiary: --log-level: ") and len(said.splitlines()) == 1


def test_a_part_may_say_more_or_less_than_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logs.parse("warning,runtime=trace,plan=error", "it"))
    for part in ("runtime", "plan", "engine"):
        for level in (logs.TRACE, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(f"bestiary.{part}").log(level, part)
    assert capsys.readouterr().err.splitlines() == [
        "bestiary: TRACE: runtime", "bestiary: INFO: runtime", "bestiary: WARNING: runtime", "bestiary: ERROR: runtime",
        "bestiary: ERROR: plan",
        "bestiary: WARNING: engine", "bestiary: ERROR: engine",
    ]  # fmt: skip


def test_another_configuration_forgets_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logs.parse("error,runtime=trace", "it"))
    logs.configure(logs.parse("info", "it"))
    logging.getLogger("bestiary.runtime").debug("no")
    logging.getLogger("bestiary.runtime").info("once")
    assert capsys.readouterr().err == "bestiary: INFO: once\n"
    assert logs.inherited() == {"BESTIARY_LOG": "info"}


def test_the_option_goes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_LOG", "trace")
    assert invoke(["plugins", "--json"]) == 0
    assert logging.getLogger("bestiary").level == logs.TRACE
    assert invoke(["--log-level", "error,runtime=debug", "plugins", "--json"]) == 0
    assert logging.getLogger("bestiary").level == logging.ERROR
    assert logging.getLogger("bestiary.runtime").level == logging.DEBUG


def said_by(code: str, **environment: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", f"from bestiary.core import logs\n{TELL}\n{code}"],
        env={**{k: v for k, v in os.environ.items() if k != "BESTIARY_LOG"}, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ran.stderr.splitlines()


def test_a_program_gets_what_the_variable_says() -> None:
    code = "logs.configure_library(); logs.configure_library(); tell(); assert not logging.getLogger().handlers"
    assert said_by(code, BESTIARY_LOG="error,plan=info") == [
        "bestiary: ERROR: bestiary.runtime 40", "bestiary: INFO: bestiary.plan 20", "bestiary: WARNING: bestiary.plan 30",
        "bestiary: ERROR: bestiary.plan 40",
    ]  # fmt: skip
    untouched = "logs.configure_library(); assert not logging.getLogger('bestiary').handlers; tell()"
    assert said_by(untouched) == said_by("tell()")


@pytest.mark.parametrize("order", ["{basic}; logs.configure_library()", "logs.configure_library(); {basic}"])
@pytest.mark.parametrize(
    "basic", ["logging.basicConfig(format='mine %(message)s')", "h = logging.StreamHandler(); h.setFormatter(logging.Formatter('mine %(message)s')); logging.getLogger('bestiary').addHandler(h)"],
    ids=["root", "bestiary"],
)  # fmt: skip
def test_no_line_is_printed_twice(order: str, basic: str) -> None:
    code = order.format(basic=basic) + "; tell()"
    assert said_by(code, BESTIARY_LOG="error") == ["mine bestiary.runtime 40", "mine bestiary.plan 40"]


def test_making_a_model_reads_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary import LLM

    monkeypatch.setenv("BESTIARY_LOG", "loud")
    with pytest.raises(UsageError, match="BESTIARY_LOG: unknown level"):
        LLM("no/such-model")
