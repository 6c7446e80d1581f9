"""The fonts of pictures: which one has the characters of a text, and what is written where none has them.

ASCII is set in the font that Pillow brings, so that most pictures are the same everywhere; a word beyond it in
matplotlib's DejaVu Sans (Latin, Greek, Cyrillic, Arabic, Hebrew), or in the first font of this machine that has it.
A character that no font has is written as an escape.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import ImageFont

from schemas.visible import visible

OWN = ""
"""In place of a file: the font that Pillow brings."""
_OWN_CHARACTERS = frozenset(map(chr, range(32, 127))) | set("°·")
_JOINERS = "\u200c\u200d\ufe0e\ufe0f"
_SHOWN = 5


def pieces(text: str) -> list[tuple[str, str]]:
    """A line as pieces to set one after the other, each with the file of its font or `OWN`.

    A word is set in one font where one has all of it; spaces stand with the words before them, so that a piece of a
    script that runs from right to left keeps its order.
    """
    if _OWN_CHARACTERS.issuperset(text):
        return [(OWN, text)]
    found: list[tuple[str, str]] = []
    for word in _words(_normal(text)):
        font = font_of(word)
        found += [(font, word)] if font is not None else [_piece(cluster) for cluster in _clusters(word)]
    for nth, (_, piece) in enumerate(found[:-1]):
        if nth and piece.isspace() and found[nth - 1][0] == found[nth + 1][0]:
            found[nth] = found[nth - 1][0], piece
    return [(font, "".join(piece for _, piece in run)) for font, run in groupby(found, key=lambda one: one[0])]


def escaped_note(texts: Iterable[str]) -> str:
    """A line on what is written as escapes in some texts, and how to change that; "" where all is drawn."""
    lost = {text: [one for one in _clusters(_normal(text)) if font_of(one) is None] for text in dict.fromkeys(texts)}
    named = [text for text, missing in lost.items() if missing]
    if not named:
        return ""
    shown = ", ".join(named[:_SHOWN]) + (f" and {len(named) - _SHOWN:,} more" if len(named) > _SHOWN else "")
    first = lost[named[0]][0]
    return (
        f"no font of this machine has all characters of {shown}: they are drawn as escapes, such as {_escape(first)}; "
        "install a font that has them, such as Noto Sans CJK (Debian: fonts-noto-cjk, other scripts: fonts-noto)"
    )


@cache
def font_of(text: str) -> str | None:
    """The file of the first font that has all characters of a text; `OWN` = Pillow's, None = none has them."""
    if _OWN_CHARACTERS.issuperset(text):
        return OWN
    return next((file for file in _files() if _draws(file, text)), None)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", visible(text))


def _piece(cluster: str) -> tuple[str, str]:
    font = font_of(cluster)
    return (OWN, _escape(cluster)) if font is None else (font, cluster)


def _escape(text: str) -> str:
    return "".join(ascii(one)[1:-1] if one > "~" else one for one in text)


def _words(text: str) -> Iterator[str]:
    """Words, and the spaces between them."""
    return ("".join(run) for _, run in groupby(text, key=str.isspace))


def _clusters(text: str) -> list[str]:
    """Characters, each with the marks that stand on it."""
    found: list[str] = []
    for one in text:
        if found and (one in _JOINERS or unicodedata.category(one).startswith("M") or found[-1][-1] == "\u200d"):
            found[-1] += one
        else:
            found.append(one)
    return found


@cache
def _files() -> tuple[str, ...]:
    """Files of fonts: matplotlib's DejaVu Sans, then this machine's, regular ones first."""
    import matplotlib as mpl  # for names beyond ASCII alone
    from matplotlib.font_manager import findSystemFonts

    found = sorted(findSystemFonts(), key=lambda file: ("regular" not in file.lower(), file))
    return str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), *found


def _draws(file: str, text: str) -> bool:
    """Whether a font has all characters of a text, and an outline of each that is to be seen."""
    if not np.isin([ord(one) for one in text], _code_points(file)).all():
        return False
    try:
        font = ImageFont.truetype(file, 20)
        return all(font.getmask(one).getbbox() is not None for one in text if one.isprintable() and one != " ")
    except OSError:
        return False


@cache
def _code_points(file: str) -> np.ndarray:
    """The characters of a font: int32 [n]; none where it cannot be read or has only bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return np.array(list(font.get_charmap()) if font.scalable else [], np.int32)
    except (OSError, RuntimeError):
        return np.array([], np.int32)
