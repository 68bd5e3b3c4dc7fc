"""The pages of ``bestiary bench`` in a browser: every plot is drawn, and no script complains."""

import re

import pytest
from browser import hidden, opened
from openai_server import OpenAIServer
from tiny import make_engine

from bestiary.core.cli.main import invoke
from bestiary.core.plugins import PluginHost

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    make_engine(folder, PluginHost.load())
    return folder / "engine"


COMMANDS = {
    "latency": (["latency", "--input", "8", "--input", "16", "--output", "8"], 3 + 2),
    "throughput": (["throughput", "-n", "6", "--input", "4-16", "--output", "4-8", "--shared-prefix", "16"], 2 + 1),
    "serve": (["serve", "-n", "8", "--rate", "20", "--rate", "50", "--output", "4", "--slo", "itl=9ms"], 1 + 3 + 2),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_engines_page(engine, name, tmp_path):
    (kind, *arguments), plots = COMMANDS[name]
    page = tmp_path / "page.html"
    assert invoke(["bench", kind, str(engine), *arguments, "--repeats", "2", "--html", str(page)]) == 0
    drawn(page, tmp_path, plots)


def test_the_page_of_a_comparison_with_failures(engine, tmp_path):
    page = tmp_path / "page.html"
    arguments = ["--concurrency", "2", "-n", "6", "--output", "4", "--repeats", "2", "--html", str(page)]
    with OpenAIServer(delay=0.002, faults={12: "500"}) as server:
        assert invoke(["bench", "serve", str(engine), "--compare", server.url, *arguments]) == 0
    drawn(page, tmp_path, 1 + 3 + 2)
    assert "1 of 12 requests failed, http 500" in page.read_text()


def drawn(page, scratch, plots):
    """Every plot has axes with numbers, and the console is silent."""
    markup, console = opened(page, scratch)
    assert console == [] and hidden(page, scratch) == []
    assert len(re.findall(r'<div id="plot-\d+" class="[^"]*js-plotly-plot', markup)) == plots
    assert markup.count('class="xtick"') > 2 * plots and "NaN" not in re.sub(
        r"<script.*?</script>", "", markup, flags=re.S
    )
