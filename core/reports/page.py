"""An HTML page in one file: headings, tables and plots that work without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.core.checkpoint.transaction import new_file
from bestiary.core.errors import PluginError, printable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #1c1e21; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.about { color: #60656c; margin-top: 0; }
.scroll { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e5e8; }
th { color: #60656c; font-weight: 600; border-bottom-color: #9aa0a6; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text:last-child { white-space: normal; min-width: 7rem; overflow-wrap: anywhere; }
td.long { white-space: normal; min-width: 20rem; max-width: 30rem; }
table.wide { font-size: .8rem; } .wide th, .wide td { padding: .25rem .35rem; }
tr.marked td { background: #ffe3e0; color: #8c1d18; font-weight: 600; }
figure { margin: 1rem 0; } figcaption { color: #60656c; font-size: .9rem; }
"""

_WIDE = 8  # columns, from which on a table is set smaller, to fit a page
_LONG = 60  # characters of a cell that may take several lines
_MARGIN = {"t": 36, "r": 24, "b": 56, "l": 72}  # pixels


class Page:
    """A page that grows from top to bottom.

    Args:
        title: what was done, to what.
        about: when, where and with which versions, in a line.
    """

    def __init__(self, title: str, about: str = "") -> None:
        self._title, self._about, self._parts, self._plots = title, about, list[str](), 0

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, marked: Sequence[int] = ()) -> None:
        """Rows under headings; a column whose cells are no numbers is flushed left.

        Args:
            marked: numbers of the rows to point at.
        """
        words = [column for column in range(len(headings)) if not _numbers([row[column] for row in rows])]
        kinds = ["text" if column in words else "" for column in range(len(headings))]
        head = "".join(_cell("th", kind, cell) for kind, cell in zip(kinds, headings, strict=True))
        lines = []
        for number, row in enumerate(rows):
            cells = "".join(_cell("td", kind, cell) for kind, cell in zip(kinds, row, strict=True))
            lines.append(f'<tr class="marked">{cells}</tr>' if number in marked else f"<tr>{cells}</tr>")
        table = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        wide = ' class="wide"' if len(headings) >= _WIDE else ""
        self._parts.append(f'<div class="scroll"><table{wide}>{table}</table></div>')

    def figure(self, figure: Figure, caption: str = "") -> None:
        """A plot of plotly's. The page carries plotly's script once. Margins that the figure has stay."""
        own = figure.layout.margin
        margin = {side: space for side, space in _MARGIN.items() if own[side] is None}
        figure.update_layout(template="plotly_white", margin=margin)
        drawn = figure.to_html(
            full_html=False,
            include_plotlyjs=self._plots == 0,
            config={"displaylogo": False, "responsive": True},
            div_id=f"plot-{self._plots}",
        )
        self._plots += 1
        note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>{drawn}{note}</figure>")

    def html(self) -> str:
        """The page as text."""
        about = f'<p class="about">{escape(self._about)}</p>' if self._about else ""
        return printable(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self._title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
            f"<body><h1>{escape(self._title)}</h1>{about}{''.join(self._parts)}</body></html>\n"
        )

    def write(self, target: Path) -> None:
        """Write the page; the file is whole or not there.

        Raises:
            OutputError: it can't be written.
        """
        new_file(target, self.html().encode())


def plotly() -> None:
    """Make sure that plots can be drawn, before hours of measuring.

    Raises:
        PluginError: plotly is not installed.
    """
    try:
        import plotly.graph_objects  # noqa: F401
    except ImportError as error:
        hint = "pip install 'bestiary[reports]'"
        raise PluginError(
            "E-REPORT-PLOTLY", "plotly", "is not installed, and pages are drawn with it", hint=hint
        ) from error


def _cell(tag: str, kind: str, text: str) -> str:
    kind += " long" if kind and len(text) > _LONG else ""
    named = f' class="{kind}"' if kind else ""
    return f"<{tag}{named}>{escape(text)}</{tag}>"


def _numbers(cells: Sequence[str]) -> bool:
    return all(not cell or cell[0].isdigit() or cell[0] in "-–+−<≤≥×" or cell in ("inf", "nan") for cell in cells)
