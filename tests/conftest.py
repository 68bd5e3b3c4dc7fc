"""What all of the SDK's tests share."""

import os
from collections.abc import Callable, Iterator

import pytest

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models lose more to waiting for a second thread than they win by it, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_TIES = pytest.StashKey[list[str]]()


@pytest.fixture
def count_ties(request: pytest.FixtureRequest) -> Callable[[str, int, int], None]:
    """Report greedy tokens that were accepted because the reference found another as likely: ``(where, ties, tokens)``."""

    def count(where: str, ties: int, tokens: int) -> None:
        request.config.stash.setdefault(_TIES, []).append(f"{where}: {ties} of {tokens} tokens")

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = [*config.stash.get(_TIES, []), *_ties_of_kits(terminalreporter)]
    if lines:
        terminalreporter.section("greedy ties with the reference")
        for line in lines:
            terminalreporter.write_line(line)


def _ties_of_kits(terminalreporter: pytest.TerminalReporter) -> Iterator[str]:
    """What the conformance kits counted, class by class."""
    counts: dict[str, list[int]] = {}
    for report in terminalreporter.getreports("passed"):
        found = dict(report.user_properties)
        if report.when == "call" and "ties" in found:
            of_class = counts.setdefault(report.nodeid.rpartition("::")[0], [0, 0])
            of_class[0] += found["ties"]
            of_class[1] += found["tokens"]
    for name, (ties, tokens) in counts.items():
        yield f"{name}: {ties} of {tokens} tokens"
