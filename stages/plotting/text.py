"""Words on pictures: colours, a typeface, lines that wrap.

The font is the one that Pillow brings, so a picture is the same everywhere; it knows ASCII, to which names are reduced.
"""

import unicodedata
from bisect import bisect_right
from functools import cache
from typing import Any

from PIL import ImageDraw, ImageFont

PAPER, INK, MUTED, RULE = "#fbfaf7", "#1f2328", "#6b7280", "#dcd9d0"


@cache
def typeface(size: int) -> Any:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size)


def write(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: str = INK, bold: bool = False
) -> None:
    """Write one line; bold is the same line twice, a fraction of a pixel apart, as the font has one weight."""
    for shift in [0.0, size / 30] if bold else [0.0]:
        pen.text((at[0] + shift, at[1]), text, fill=colour, font=typeface(size))


def wrap(text: str, width: float, size: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words, and within those that fit no line; at least one."""
    font = typeface(size)
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        lines += [line] if line else []
        line = word
        while len(line) > 1 and font.getlength(line) > width:
            fits = _fitting(line, width, font)
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line]


def _fitting(word: str, width: float, font: Any) -> int:
    """Number of a word's characters that fit, at least one."""
    return max(1, bisect_right(range(len(word)), width, key=lambda count: font.getlength(word[:count])) - 1)


def in_ascii(text: str) -> str:
    """A text in characters that the font has: accents fall, what is left of other scripts becomes "?"."""
    bare = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return "".join(char if " " <= char <= "~" or char in "°·" else "?" for char in bare)
