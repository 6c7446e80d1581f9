"""Charts as inline SVG, drawn by matplotlib in the colours of the page.

Text stays text, so the browser draws names in any script. Each colour is a placeholder that becomes a CSS variable of
the page, which has a value for each theme; a line has its own dashes besides its colour.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.report.blocks import Chart

_INK, _MUTED, _GRID = "#fe0001", "#fe0002", "#fe0003"
_SERIES = tuple(f"#fe001{number}" for number in range(6))
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--rule"} | {
    placeholder: f"--c{number}" for number, placeholder in enumerate(_SERIES)
}
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)), (0, (9, 2)), (0, (3, 3)))
_INCHES = (4.3, 2.7)
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "text.parse_math": False,  # a class or a run may be called $x$
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
}

Points = tuple[Sequence[float], Sequence[float]]
"""x and y of a line's points."""


def line_chart(title: str, lines: Mapping[str, Points], *, y: str, x: str = "step", from_zero: bool = False) -> Chart:
    """A line chart.

    Args:
        title: above it, and what a screen reader says.
        lines: at least one, by name.
        y: what the y axis shows, with its unit.
        x: what the x axis shows.
        from_zero: begin the y axis at 0.
    """
    with _figure() as (figure, axes):
        for number, (name, (xs, ys)) in enumerate(lines.items()):
            colour, dashes = _SERIES[number % len(_SERIES)], _DASHES[(number + number // len(_SERIES)) % len(_DASHES)]
            marker = "o" if len(xs) < 15 else ""
            axes.plot(xs, ys, color=colour, linestyle=dashes, marker=marker, markersize=3, linewidth=1.6, label=name)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set(xlabel=x, ylabel=y)
        if len(lines) > 1:
            columns = 1 if max(map(len, lines)) > 24 else 2
            figure.legend(loc="outside upper left", ncols=columns)
        return Chart(title, _svg(figure, title))


def histogram(title: str, counts: Sequence[int], edges: Sequence[float], *, x: str) -> Chart:
    """Counts of bins between edges, the first all below and the last all above, on an axis of bins.

    Args:
        title: above it.
        counts: of n + 1 bins.
        edges: n, ascending.
        x: what is counted, with its unit.
    """
    with _figure() as (figure, axes):
        axes.bar(range(len(counts)), counts, width=0.9, color=_SERIES[0])
        shown = range(0, len(edges), 9)
        axes.set_xticks([number + 0.5 for number in shown], [f"{edges[number]:.3g}" for number in shown])
        axes.grid(False, axis="x")
        axes.set(xlabel=x, ylabel="views")
        return Chart(title, _svg(figure, title))


@contextmanager
def _figure() -> Iterator[tuple[Figure, Axes]]:
    """A figure in the page's style, and its axes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.subplots()
        for one in (figure, axes):
            one.patch.set_alpha(0)
        yield figure, axes


def _svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element: the same bytes for the same figure, with names that no other chart's have."""
    out = io.StringIO()
    salt = sha256(title.encode()).hexdigest()[:12]
    with mpl.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser draws the text, with its own fonts
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([\w.]+)"', rf'id="\1-{salt}"', text)
    text = re.sub(r"url\(#(\w+)\)", rf"url(#\1-{salt})", text)
    text = re.sub(r'href="#(\w+)"', rf'href="#\1-{salt}"', text)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
