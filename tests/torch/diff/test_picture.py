"""The plots of ``bestiary diff``: what is infinite is drawn as infinite, and nothing lies on anything else."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from bestiary.core.diff import picture


def row(name: str, own: float, accumulated: float, layer: int | None = 0) -> Any:
    """A tensor with these errors, 1e-6 allowed."""
    return SimpleNamespace(
        name=name,
        layer=layer,
        place=name,
        excess=own / 1e-6,
        reading=SimpleNamespace(own=SimpleNamespace(relative=own), allowed=SimpleNamespace(relative=1e-6)),
        accumulated=SimpleNamespace(accumulated=SimpleNamespace(relative=accumulated)),
    )


ROWS = [row("embed", 0.0, 0.0, None), row("norm", 1e-7, 1e-7), row("q", math.inf, math.inf), row("mlp", 1e-7, math.nan)]


def test_infinite_errors_have_cells_of_their_own() -> None:
    for own, infinite in ((True, ["q"]), (False, ["q", "mlp"])):
        finite, beyond, *_ = picture._map(ROWS, own=own).data
        drawn = [beyond.x[c] for line in beyond.z for c, value in enumerate(line) if value is not None]
        assert sorted(drawn) == sorted(infinite)
        assert sorted(text for line in beyond.text for text in line if text) == ["∞"] * len(infinite)
        numbers = [value for line in finite.z for value in line if value is not None]
        assert max(numbers) < -0.9, "no power of ten stands for what is infinite"


def test_infinite_errors_along_the_model_lie_above_all_others_and_say_so() -> None:
    drawn = picture._depth(ROWS)
    traces = {trace.name: trace for trace in drawn.data}
    assert list(traces["own, infinite"].x) == [2] and list(traces["accumulated, infinite"].x) == [2, 3]
    finite = [y for name, trace in traces.items() if "infinite" not in name for y in trace.y if y is not None]
    assert min(*traces["own, infinite"].y, *traces["accumulated, infinite"].y) >= 10 * max(finite)
    assert [note.text for note in drawn.layout.annotations] == [" ∞", "q"]


def test_without_infinite_errors_nothing_tells_of_any() -> None:
    drawn = picture._depth(ROWS[:2])
    assert [trace.name for trace in drawn.data] == ["accumulated", "own", "allowed of the own"]
    _, beyond = picture._map(ROWS[:2], own=True).data
    assert all(value is None for line in beyond.z for value in line)


def test_the_bar_of_colours_lies_left_of_the_buttons_with_its_title_above() -> None:
    for own in (True, False):
        bar = picture._map(ROWS, own=own).data[0].colorbar
        assert (bar.orientation, bar.xanchor, bar.yanchor, bar.title.side) == ("h", "left", "bottom", "top")
        assert bar.x + bar.len < 0.6
