"""What all of the SDK's tests share."""

import os
from collections.abc import Callable

import pytest

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models lose more to waiting for a second thread than they win by it, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Looking for doctests would import it, and it ends the process that does.
collect_ignore = ["support/crashing_declaration.py"]


@pytest.fixture
def count_ties(request: pytest.FixtureRequest) -> Callable[[int, int], None]:
    """Report greedy tokens that were accepted because the reference found another as likely: ``(ties, tokens)``."""

    def count(ties: int, tokens: int) -> None:
        request.node.user_properties += [("ties", ties), ("tokens", tokens)]

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Reports come from other processes too, and bring what their tests counted.
    counts: dict[str, dict[str, int]] = {}
    for report in terminalreporter.getreports("passed"):
        found = [pair for pair in report.user_properties if pair[0] in ("ties", "tokens")]
        if report.when == "call" and found:
            of_group = counts.setdefault(report.nodeid.rpartition("::")[0], {"ties": 0, "tokens": 0})
            for name, number in found:
                of_group[name] += number
    if counts:
        terminalreporter.section("greedy ties with the reference")
        for group, count in sorted(counts.items()):
            terminalreporter.write_line(f"{group}: {count['ties']} of {count['tokens']} tokens")
