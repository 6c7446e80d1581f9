"""The contact sheet: one sample and its views as a picture that explains itself.

Above, the photograph with every view's crop, numbered; below, one tile a view, whose lines stand at one height
across a row, so that rows can be compared. Everything is measured before it is drawn: what is long wraps and makes
its row taller. Colour never speaks alone. Drawn with Pillow. Rejected: a plotting library, which would be a dependency
for one picture.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from schemas.recipe import Recipe
from stages.inspect.captions import VERDICTS, Caption, facts, head_facts, mix_words
from stages.inspect.views import AgreementKind, Sample, SeenView
from stages.plotting.text import INK, MUTED, PAPER, RULE, length, wrap, write
from stages.replay.decide import Box

_EMPTY = "#efede6"
COLOURS = (  # of crop boxes and numbers, in turn; white reads on each, and the two behind each look different
    "#2f62c8", "#cf4a10", "#0b7285", "#6741d9", "#287d3c", "#a03cc0",
    "#862e6b", "#5f7a10", "#c2255c", "#1f3d7a", "#9c6412", "#495057",
)  # fmt: skip
_GLYPHS: dict[AgreementKind, list[tuple[float, ...]]] = {  # strokes on a square of side 16
    "own": [(4, 8.5, 7, 11.5, 12, 5)],
    "partner": [(3.5, 8, 12, 8), (8.5, 4.5, 12, 8, 8.5, 11.5)],
    "neither": [(5, 5, 11, 11), (11, 5, 5, 11)],
}
_READING = (
    "Outlined in the image: the crop of each view, by its number.",
    "Large: what the model sees, after mixing. Small: the view alone, above its partner's view; outlined in them what "
    "was erased, and what CutMix pasted. The bar is the view's own share, lambda.",
)
_MARGIN, _GUTTER, _GAP = 48, 36, 8
_PICTURE = 224
_SMALL = (_PICTURE - _GAP) // 2
_TILE = _PICTURE + _GAP + _SMALL
_LABEL = 60  # width of a tile's left column of words
_PHOTO_HEIGHT = 420
_COLUMNS = 4
_MANY = 16  # more crops than this are outlined thinly
_BODY, _LINE = 14, 20


def draw_sheet(
    sample: Sample, views: Sequence[SeenView], recipe: Recipe, names: Sequence[str], about: Sequence[tuple[str, str]]
) -> Image.Image:
    """Draw the sheet.

    Args:
        sample: whose views they are.
        views: at least one.
        recipe: that made them.
        names: of the classes, for people.
        about: further lines of the head, as (label, text).

    Returns:
        An RGB picture, 808 to 1568 pixels wide.
    """
    columns = min(_COLUMNS, max(2, len(views)))
    width = _span(columns)
    blocks = [_title(sample, names, width), _head(sample, views, recipe, names, about, columns)]
    for start in range(0, len(views), columns):
        blocks.append(_row(sample, views[start : start + columns], recipe, names, width))
    height = sum(block.height for block in blocks) + _GUTTER * (len(blocks) - 1)
    sheet = Image.new("RGB", (width + 2 * _MARGIN, height + 2 * _MARGIN), PAPER)
    top = _MARGIN
    for block in blocks:
        sheet.paste(block, (_MARGIN, top))
        top += block.height + _GUTTER
    return sheet


def names_on_sheet(sample: Sample, views: Sequence[SeenView], names: Sequence[str]) -> list[str]:
    """The names that a sheet shows: of the sample, its class, and the classes of partners and decisions."""
    partners = [view.partner.label for view in views if view.partner]
    decisions = [view.decision for view in views if view.decision is not None]
    return [sample.name, *(names[number] for number in sorted({sample.label, *partners, *decisions}))]


def _title(sample: Sample, names: Sequence[str], width: int) -> Image.Image:
    lines = wrap(names[sample.label], width, 34)
    under = wrap(f"sample {sample.number} · shard {sample.shard}, row {sample.row} · {sample.name}", width, _BODY + 1)
    block = Image.new("RGB", (width, 44 * len(lines) + 22 * len(under) + 20), PAPER)
    pen = ImageDraw.Draw(block)
    for nth, line in enumerate(lines):
        write(pen, (0, 44 * nth), line, 34, bold=True)
    for nth, line in enumerate(under):
        write(pen, (1, 44 * len(lines) + 4 + 22 * nth), line, _BODY + 1, MUTED)
    pen.line((0, block.height - 1, width, block.height - 1), fill=RULE)
    return block


def _head(
    sample: Sample,
    views: Sequence[SeenView],
    recipe: Recipe,
    names: Sequence[str],
    about: Sequence[tuple[str, str]],
    columns: int,
) -> Image.Image:
    """The photograph with its crops, and beside it what the sheet is about and how it is read."""
    photo = _photograph(sample.image, views, _span((columns + 1) // 2))
    beside = next(n for n in range(1, columns) if photo.width <= _span(n))
    left = _span(beside) + _GUTTER
    notes = _notes(head_facts(sample, views, recipe, about), min(_span(columns) - left, 520))
    block = Image.new("RGB", (_span(columns), max(photo.height, notes.height)), PAPER)
    block.paste(photo, (0, 0))
    block.paste(notes, (left, 0))
    return block


def _span(columns: int) -> int:
    """The width of so many tiles."""
    return columns * (_TILE + _GUTTER) - _GUTTER


def _photograph(image: np.ndarray, views: Sequence[SeenView], width: int) -> Image.Image:
    height, natural_width = image.shape[:2]
    scale = min(width / natural_width, _PHOTO_HEIGHT / height)
    scale = int(scale) if scale >= 1 else scale  # integer enlargements only: pixels stay square
    size = max(1, round(natural_width * scale)), max(1, round(height * scale))
    filter_ = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    photo = Image.fromarray(image).resize(size, filter_)
    pen = ImageDraw.Draw(photo, "RGBA")
    boxes = [_scaled(view.decided.crop, size[0] / natural_width, size[1] / height) for view in views]
    many = len(views) > _MANY
    for box in boxes if not many else ():
        pen.rectangle(_grown(box, 1), outline=(255, 255, 255, 170), width=4)
    for view, box in zip(views, boxes, strict=True):
        pen.rectangle(box, outline=_colour(view.number), width=1 if many else 2)
    taken: list[tuple[int, int, int, int]] = []
    for view, box in zip(views, boxes, strict=True):
        taken.append(_free_place(box, _chip_width(view.number), taken))
        _chip(pen, taken[-1][:2], view.number)
    return photo


def _free_place(
    box: tuple[int, int, int, int], width: int, taken: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """A place for a number along a box's edges that covers no other number; its first corner where none is free."""
    left, top, right, bottom = box
    across = range(left, max(left, right - width) + 1, 4)
    down = range(top, max(top, bottom - _CHIP) + 1, 4)
    places = [(x, top) for x in across] + [(left, y) for y in down]
    places += [(max(left, right - width + 1), y) for y in down] + [(x, max(top, bottom - _CHIP + 1)) for x in across]
    for x, y in places:
        if all(x + width < one[0] or x > one[2] or y + _CHIP < one[1] or y > one[3] for one in taken):
            return x, y, x + width, y + _CHIP
    return left, top, left + width, top + _CHIP


def _notes(about: Sequence[Caption], width: int) -> Image.Image:
    """What the sheet is about, line by line, and how it is read."""
    label_width, line_height = 120, 23
    reading = [line for text in _READING for line in [*wrap(text, width, _BODY), ""]]
    wrapped = [wrap(fact.text, width - label_width - _indent(fact), _BODY) for fact in about]
    block = Image.new("RGB", (width, line_height * sum(map(len, wrapped)) + 16 + _LINE * len(reading)), PAPER)
    top = 0
    for fact, lines in zip(about, wrapped, strict=True):
        _fact(block, (0, top), fact, lines, label_width, line_height)
        top += line_height * len(lines)
    pen = ImageDraw.Draw(block)
    for nth, line in enumerate(reading):
        write(pen, (0, top + 16 + _LINE * nth), line, _BODY, MUTED)
    return block


def _row(sample: Sample, views: Sequence[SeenView], recipe: Recipe, names: Sequence[str], width: int) -> Image.Image:
    """Tiles side by side, each of their lines at one height."""
    table = [facts(sample, view, recipe, names) for view in views]
    wrapped = [[wrap(line.text, _TILE - _LABEL - _indent(line), _BODY) for line in lines] for lines in table]
    counts = [max(len(text) for text in column) for column in zip(*wrapped, strict=True)]
    pictures = _CHIP + _GAP + _PICTURE + 22
    block = Image.new("RGB", (width, pictures + _LINE * sum(counts)), PAPER)
    for nth, (view, lines, texts) in enumerate(zip(views, table, wrapped, strict=True)):
        left = nth * (_TILE + _GUTTER)
        block.paste(_pictures(view), (left, 0))
        top = pictures
        for line, text, count in zip(lines, texts, counts, strict=True):
            _fact(block, (left, top), line, text, _LABEL, _LINE)
            top += _LINE * count
    return block


def _pictures(view: SeenView) -> Image.Image:
    """A tile's number, pictures and bar."""
    block = Image.new("RGB", (_TILE, _CHIP + _GAP + _PICTURE + 14), PAPER)
    pen = ImageDraw.Draw(block)
    _chip(pen, (0, 0), view.number)
    kind = "sits out" if view.mix is None else mix_words(view.mix).partition(",")[0]
    write(pen, (_chip_width(view.number) + 8, 1), kind, _BODY, bold=True)
    top = _CHIP + _GAP
    for place, side, picture in (
        ((0, top), _PICTURE, view.seen),
        ((_PICTURE + _GAP, top), _SMALL, view.alone),
        ((_PICTURE + _GAP, top + _SMALL + _GAP), _SMALL, view.partner.view if view.partner else None),
    ):
        block.paste(_shown(picture, side), place)
    small = _SMALL / len(view.alone)
    if view.decided.erase:
        _outline(pen, view.decided.erase.box, small, (_PICTURE + _GAP, top))
    if view.mix and view.mix.box:
        _outline(pen, view.mix.box, small, (_PICTURE + _GAP, top + _SMALL + _GAP))
    if view.mix:
        bar = top + _PICTURE + _GAP
        pen.rectangle((0, bar, _PICTURE - 1, bar + 4), fill=RULE)
        pen.rectangle((0, bar, max(0, round(_PICTURE * view.mix.lam) - 1), bar + 4), fill=_colour(view.number))
    return block


def _shown(view: np.ndarray | None, side: int) -> Image.Image:
    """A view at a side: few pixels stay visible as squares, many are averaged."""
    if view is None:
        return Image.new("RGB", (side, side), _EMPTY)
    picture = Image.fromarray(view)
    if 2 * picture.width <= side:
        times = -(-side // picture.width)
        picture = picture.resize((picture.width * times,) * 2, Image.Resampling.NEAREST)
        return picture.resize((side, side), Image.Resampling.BOX)
    return picture if picture.width == side else picture.resize((side, side), Image.Resampling.LANCZOS)


def _outline(pen: ImageDraw.ImageDraw, box: Box, scale: float, at: tuple[int, int]) -> None:
    left, top, right, bottom = _scaled(box, scale, scale)
    outline = at[0] + left, at[1] + top, at[0] + right, at[1] + bottom
    pen.rectangle(outline, outline="white", width=2)
    pen.rectangle(outline, outline=INK, width=1)


def _indent(fact: Caption) -> int:
    """What the mark takes of a line's width."""
    return 22 if fact.mark else 0


def _fact(
    block: Image.Image, at: tuple[int, int], fact: Caption, lines: Sequence[str], label_width: int, line_height: int
) -> None:
    pen = ImageDraw.Draw(block)
    left, top = at
    write(pen, at, fact.label, _BODY, MUTED)
    left += label_width
    colour = MUTED if fact.absent else INK
    if fact.mark:
        colour = VERDICTS[fact.mark][0]
        badge = _badge(fact.mark)
        block.paste(colour, (left, top + 1), badge)
        left += _indent(fact)
    for nth, line in enumerate(lines):
        write(pen, (left, top + nth * line_height), line, _BODY, colour)


@cache
def _badge(mark: AgreementKind) -> Image.Image:
    """A disc of 16 pixels with a tick, an arrow or a cross left open, as a mask; drawn large for smooth edges."""
    large = Image.new("L", (128, 128), 0)
    pen = ImageDraw.Draw(large)
    pen.ellipse((0, 0, 127, 127), fill=255)
    for stroke in _GLYPHS[mark]:
        pen.line([8 * value for value in stroke], fill=0, width=15, joint="curve")
    return large.resize((16, 16), Image.Resampling.LANCZOS)


_CHIP = 20


def _chip_width(number: int) -> int:
    return 14 + 8 * len(str(number))


def _chip(pen: ImageDraw.ImageDraw, at: tuple[int, int], number: int) -> None:
    """A view's number on its colour."""
    left, top = at
    width = _chip_width(number)
    pen.rectangle((left, top, left + width - 1, top + _CHIP - 1), fill=_colour(number))
    start = left + (width - length(str(number), 13)) / 2
    write(pen, (start, top + 2), str(number), 13, "white", bold=True)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _scaled(box: Box, across: float, down: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixel of a box, inclusive, in a picture of another size."""
    left, top = round(box.left * across), round(box.top * down)
    right, bottom = round((box.left + box.width) * across) - 1, round((box.top + box.height) * down) - 1
    return left, top, max(left, right), max(top, bottom)


def _grown(box: tuple[int, int, int, int], by: int) -> tuple[int, int, int, int]:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by
