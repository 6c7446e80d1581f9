"""What a page is made of: sections of blocks. A block holds plain text, which the template escapes."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from PIL import Image


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    KIND: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Missing:
    """A line in place of what is not stored.

    Attributes:
        what: is missing, as a sentence without its full stop.
        fix: the command that makes it; "" = none does.
    """

    KIND: ClassVar[str] = "missing"
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        head: titles of the columns; empty = the first column names the rows.
        rows: cells as they are shown; as many in each row.
        title: above it.
        shares: by row, parts of 1 that a stacked bar behind the cells shows; empty = no bars.
        legend: what the parts are called.
        words: whether cells are words, which stand at the left.
    """

    KIND: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    shares: Sequence[Sequence[float]] = ()
    legend: Sequence[str] = ()
    words: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart: `svg` is trusted markup, made by `stages.report.charts`."""

    KIND: ClassVar[str] = "chart"
    title: str
    svg: str


@dataclass(frozen=True)
class Picture:
    """An image in the page itself: `source` is a data URI, `title` says what is to be seen."""

    KIND: ClassVar[str] = "picture"
    title: str
    source: str
    small: bool = False


Block = Text | Missing | Table | Chart | Picture


@dataclass(frozen=True)
class Section:
    """A part of the page: an anchor, a title and blocks in their order."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    @property
    def absent(self) -> bool:
        """Whether nothing of what it is about is stored."""
        return all(isinstance(block, Missing) for block in self.blocks)


def picture(title: str, image: Image.Image, *, small: bool = False) -> Picture:
    """An image as a block, compressed as WebP."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "WEBP", quality=85)
    return Picture(title, f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}", small)
