"""Words on pictures: colours, lines of any script, lines that wrap."""

from bisect import bisect_right
from functools import cache
from typing import Any

from PIL import ImageDraw, ImageFont

from stages.plotting.fonts import OWN, pieces

PAPER, INK, MUTED, RULE = "#fbfaf7", "#1f2328", "#6b7280", "#dcd9d0"


@cache
def typeface(size: int, file: str = OWN) -> Any:
    """A font at a size in pixels."""
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def length(text: str, size: int) -> float:
    """The width of a line in pixels."""
    return sum(typeface(size, file).getlength(piece) for file, piece in pieces(text))


def write(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: str = INK, bold: bool = False
) -> None:
    """Write one line, all its fonts on one baseline.

    Bold is the same line twice, a fraction of a pixel apart, as Pillow's font has one weight.
    """
    baseline = at[1] + typeface(size).getmetrics()[0]
    for shift in [0.0, size / 30] if bold else [0.0]:
        left = at[0] + shift
        for file, piece in pieces(text):
            pen.text((left, baseline), piece, fill=colour, font=typeface(size, file), anchor="ls")
            left += typeface(size, file).getlength(piece)


def wrap(text: str, width: float, size: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words, and within those that fit no line; at least one."""
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if length(longer, size) <= width:
            line = longer
            continue
        lines += [line] if line else []
        line = word
        while len(line) > 1 and length(line, size) > width:
            fits = _fitting(line, width, size)
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line]


def _fitting(word: str, width: float, size: int) -> int:
    """Number of a word's characters that fit, at least one."""
    return max(1, bisect_right(range(len(word)), width, key=lambda count: length(word[:count], size)) - 1)
