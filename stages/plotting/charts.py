"""Figures: tables in Markdown, heat maps and line charts, for people; drawn as the contact sheet is.

Colour never speaks alone: every cell has its number, every line its name at its end. Rejected: a plotting library,
which would be a dependency for four pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from stages.plotting.contrast import ink_on
from stages.plotting.text import INK, MUTED, PAPER, RULE, length, wrap, write

COLOURS = ("#06305f", "#b45309", "#8a1c5b", "#1d6fd1")
"""Each tells itself by luminance or hue from its neighbours, also without red or green; more series than these have
other dashes and marks."""
_DASHES = ((), (14, 6), (4, 5), (14, 5, 4, 5))
_MARGIN, _TITLE, _BODY, _LINE = 48, 26, 15, 22
_CELL = (104, 56)
_SCALE = 54
"""Height of a heat map's colour bar with its numbers."""
_PLOT = (900, 460)
_COLD, _HOT = np.array((0xFB, 0xFA, 0xF7)), np.array((0xCF, 0x4A, 0x10))


@dataclass(frozen=True)
class Series:
    """Points of a chart that belong together.

    Attributes:
        name: written at the last point.
        points: as (x, y), in the order in which they are joined.
        joined: by a line.
        labels: written at the points; empty = none.
        spread: half the height of each point's bar; empty = none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True
    labels: Sequence[str] = ()
    spread: Sequence[float] = ()


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a cell's bars are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def heat_map(title: str, about: str, names: Sequence[str], rates: np.ndarray) -> Image.Image:
    """A square table of rates from 0 to 1, each cell with its number and a colour by its size.

    Args:
        title: above.
        about: what is shown, in a sentence.
        names: of rows and columns alike.
        rates: float [n, n].
    """
    left = 28 + int(max(length(name, _BODY) for name in names))
    wide, high = _CELL
    width = max(left + wide * len(names), 520)
    heads = [wrap(name, wide - 10, 13) for name in names]
    top_of_cells = 18 * max(map(len, heads)) + 8
    plot = Image.new("RGB", (width, top_of_cells + high * len(names) + _SCALE), PAPER)
    pen = ImageDraw.Draw(plot)
    largest = float(rates.max()) or 1.0
    for column, lines in enumerate(heads):
        for nth, line in enumerate(lines):
            _centred(pen, left + wide * (column + 0.5), 18 * nth, line, 13, MUTED)
    for row, name in enumerate(names):
        middle = top_of_cells + high * (row + 0.5)
        write(pen, (0, middle - 10), name, _BODY)
        for column, rate in enumerate(rates[row].tolist()):
            fill = _warmth(rate / largest)
            at = left + wide * column, top_of_cells + high * row
            pen.rectangle((*at, at[0] + wide - 3, at[1] + high - 3), fill=fill, outline=RULE)
            ink = ink_on(fill, "#ffffff", INK)
            _centred(pen, at[0] + wide / 2 - 1, middle - 10, f"{rate:.3f}", 16, ink, bold=row != column)
    _colour_bar(pen, left, plot.height - _SCALE + 14, min(wide * len(names) - 24, 416), largest)
    return _page(title, f"{about} Colour: from 0 (light) to {largest:.3f} (dark).", plot)


def _warmth(share: float) -> str:
    """The colour of a share of the largest rate."""
    return "#{:02x}{:02x}{:02x}".format(*(_COLD + (_HOT - _COLD) * share).astype(int).tolist())


def _colour_bar(pen: ImageDraw.ImageDraw, left: int, top: int, width: int, largest: float) -> None:
    """The scale of a heat map: its colours from 0 to the largest rate, with three numbers below."""
    for x in range(width):
        pen.line((left + x, top, left + x, top + 14), fill=_warmth(x / (width - 1)))
    pen.rectangle((left, top, left + width - 1, top + 14), outline=RULE)
    for share in (0.0, 0.5, 1.0):
        at = left + share * (width - 1)
        pen.line((at, top + 15, at, top + 19), fill=MUTED)
        _centred(pen, at, top + 21, f"{largest * share:.3f}", 13, MUTED)


def chart(
    title: str,
    about: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Image.Image:
    """Points and lines over two axes.

    Args:
        title: above.
        about: what is shown, in a sentence.
        series: each with at least one point.
        x: what the x axis is.
        y: what the y axis is.
        log_x: the x axis is logarithmic; every x is then above 0.
        y_range: of the y axis; None = that of the points.
    """
    xs = [point[0] for one in series for point in one.points]
    ys = [point[1] for one in series for point in one.points]
    across, along = _Axis.over(xs, log=log_x), _Axis.over([*ys, *(y_range or ())], log=False)
    names = int(max(length(one.name, _BODY) for one in series))
    left, room = 64, 24 + names
    plot = Image.new("RGB", (left + _PLOT[0] + room, _PLOT[1] + 84), PAPER)
    pen = ImageDraw.Draw(plot)
    write(pen, (0, 0), y, 13, MUTED)
    frame = _Frame(across, along, left=left, top=30)
    frame.draw(pen, x)
    places: list[tuple[float, float]] = []
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        spots = [frame.at(point) for point in one.points]
        if one.joined and len(spots) > 1:
            _dashed(pen, spots, colour, _DASHES[(number + number // len(COLOURS)) % len(_DASHES)])
        for (at_x, at_y), half in zip(one.points, one.spread, strict=False):
            pen.line((frame.at((at_x, at_y - half)), frame.at((at_x, at_y + half))), fill=colour, width=2)
        for spot in spots:
            _dot(pen, spot, colour, number)
        for spot, label in zip(spots, one.labels, strict=False):
            _beside(pen, spot, label, 12, INK, places)
        _beside(pen, spots[-1], one.name, _BODY, colour, places)
    return _page(title, about, plot)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], *, log: bool) -> "_Axis":
        """An axis from a round number below the values to one above them."""
        low, high = min(values), max(values)
        if log:
            low, high = low / 1.15, high * 1.15
            tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = [digit * 10.0**ten for ten in tens for digit in (1, 2, 5)]
            return cls(low, high, True, tuple(one for one in steps if low <= one <= high))
        if high == low:
            low, high = low - 0.5, high + 0.5
        step = 10.0 ** math.floor(math.log10((high - low) / 4))
        step *= next(m for m in (1, 2, 2.5, 5, 10) if (high - low) / (step * m) <= 6)
        first, last = math.floor(low / step), math.ceil(high / step)
        return cls(first * step, last * step, False, tuple(n * step for n in range(first, last + 1)))

    def place(self, value: float) -> float:
        """The position of a value, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class _Frame:
    across: _Axis
    along: _Axis
    left: int
    top: int

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        x, y = self.across.place(point[0]), self.along.place(point[1])
        return self.left + x * _PLOT[0], self.top + (1 - y) * _PLOT[1]

    def draw(self, pen: ImageDraw.ImageDraw, x: str) -> None:
        """Grid, ticks and the x axis's name."""
        right, bottom = self.left + _PLOT[0], self.top + _PLOT[1]
        for tick in self.along.ticks:
            _, height = self.at((self.across.low, tick))
            pen.line((self.left, height, right, height), fill=RULE)
            text = f"{tick:.4g}"
            write(pen, (self.left - 10 - length(text, 13), height - 9), text, 13, MUTED)
        for tick in self.across.ticks:
            place, _ = self.at((tick, self.along.low))
            pen.line((place, bottom, place, bottom + 6), fill=MUTED)
            _centred(pen, place, bottom + 8, f"{tick:,.10g}", 13, MUTED)
        pen.line((self.left, bottom, right, bottom), fill=INK)
        _centred(pen, (self.left + right) / 2, bottom + 30, x, 14, INK)


def _page(title: str, about: str, plot: Image.Image) -> Image.Image:
    titles, lines = wrap(title, plot.width, _TITLE), wrap(about, plot.width, _BODY)
    top = 36 * len(titles) + _LINE * len(lines) + 22
    page = Image.new("RGB", (plot.width + 2 * _MARGIN, top + plot.height + 2 * _MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    for nth, line in enumerate(titles):
        write(pen, (_MARGIN, _MARGIN + 36 * nth), line, _TITLE, bold=True)
    for nth, line in enumerate(lines):
        write(pen, (_MARGIN, _MARGIN + 36 * len(titles) + 2 + _LINE * nth), line, _BODY, MUTED)
    page.paste(plot, (_MARGIN, _MARGIN + top))
    return page


def _dot(pen: ImageDraw.ImageDraw, at: tuple[float, float], colour: str, number: int) -> None:
    """A series' mark: a circle, a square, a diamond or a triangle."""
    x, y = at
    pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=PAPER)
    if number % 4 == 0:
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
    else:
        pen.regular_polygon((x, y, 6), (4, 4, 3)[number % 4 - 1], rotation=(0, 45, 0)[number % 4 - 1], fill=colour)


def _dashed(
    pen: ImageDraw.ImageDraw, spots: Sequence[tuple[float, float]], colour: str, dashes: tuple[int, ...]
) -> None:
    """A line through points, of pieces and gaps of these lengths in turn; without any it is unbroken."""
    if not dashes:
        pen.line(spots, fill=colour, width=3, joint="curve")
        return
    left, nth = float(dashes[0]), 0
    for (x, y), (to_x, to_y) in pairwise(spots):
        whole, done = math.dist((x, y), (to_x, to_y)), 0.0
        while done < whole:
            piece = min(left, whole - done)
            ends = [(x + (to_x - x) * at / whole, y + (to_y - y) * at / whole) for at in (done, done + piece)]
            if nth % 2 == 0:
                pen.line(ends, fill=colour, width=3)
            done, left = done + piece, left - piece
            if left <= 0:
                nth += 1
                left = float(dashes[nth % len(dashes)])


def _beside(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    colour: str,
    taken: list[tuple[float, float]],
) -> None:
    """Write beside a point on clean ground, lower where another text has the place."""
    x, y = at[0] + 12, at[1] - size * 0.7
    while any(abs(y - other) < size + 3 and abs(x - across) < 140 for across, other in taken):
        y += 3
    taken.append((x, y))
    pen.rectangle((x - 2, y + 2, x + length(text, size) + 2, y + size + 3), fill=PAPER)
    write(pen, (x, y), text, size, colour)


def _centred(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, colour: str, bold: bool = False
) -> None:
    write(pen, (x - length(text, size) / 2, y), text, size, colour, bold=bold)
