"""Pages: whole without a network, and nobody's text becomes markup."""

import plotly.graph_objects as go
import pytest

from bestiary import OutputError
from bestiary.tools import Page


def test_texts_are_escaped_and_marked_rows_show(tmp_path):
    page = Page("a <b>", "about & so on")
    page.heading("<script>")
    page.text("x < y")
    page.table(("layer", "error"), [("<i>", "1.5"), ("norm", "2.0")], marked=[1])
    page.write(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "<script>" not in html and "&lt;script&gt;" in html and "<i>" not in html
    assert '<tr class="marked"><td class="text">norm</td><td>2.0</td></tr>' in html
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_plots_bring_their_script_once_and_ask_no_network():
    page = Page("plots")
    for _ in range(2):
        page.figure(go.Figure(go.Scatter(x=[1, 2], y=[3, 4])), "a caption")
    html = page.html()
    assert html.count("Plotly.newPlot(") == 2
    assert html.count("plotly.js v") == 1
    assert 'src="http' not in html


def test_margins_that_a_plot_has_stay():
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), layout={"margin": {"t": 150}})
    Page("plots").figure(figure)
    assert (figure.layout.margin.t, figure.layout.margin.b) == (150, 56)


def test_infinite_cells_are_numbers():
    page = Page("numbers")
    page.table(("error",), [("1.5",), ("inf",)])
    assert 'class="text"' not in page.html().split("<table>")[1]


def test_a_page_that_can_not_be_written_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match=r"page\.html: can't be written"):
        Page("x").write(tmp_path / "missing" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_wide_tables_are_set_smaller_and_long_cells_take_several_lines() -> None:
    page = Page("t")
    page.table([f"h{n}" for n in range(8)], [["word " * 13, *"1234567"]])
    page.table(["a", "b"], [["short", "1"]])
    wide, narrow = page.html().split('<div class="scroll">')[1:]
    assert '<table class="wide">' in wide and '<td class="text long">word' in wide and wide.count("long") == 1
    assert "<table>" in narrow and "long" not in narrow
