"""Confusion of the worst classes: what a run names in their place, with images that it names wrongly."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from stages.data.split import Split
from stages.evaluate.predictions import Predictions
from stages.evaluate.reports import HEADS
from stages.inspect.views import readable
from stages.replay.decode import decode
from stages.report.blocks import Block, Section, Table, Text, picture

_CLASSES, _TAKEN_FOR, _IMAGES, _SIDE = 10, 3, 12, 112


def confusion_section(found: Predictions, classes: Sequence[str], split: Split | None) -> Section:
    """The classes with the lowest top-1, what they are taken for, and images.

    Args:
        found: predictions of a run.
        classes: names by index.
        split: whose images they are, in their order; None = the images are not stored here.

    Raises:
        UserError: if an image is not what was stored.
    """
    head = next(name for name in ("fused", *HEADS) if name in found.top)
    named, names = found.top[head][:, 0], readable(classes)
    right = named == found.classes
    totals = np.bincount(found.classes, minlength=len(classes))
    hits = np.bincount(found.classes[right], minlength=len(classes))
    there = np.flatnonzero(totals > hits)
    worst = there[np.argsort(hits[there] / totals[there], kind="stable")][:_CLASSES].tolist()
    about = f"{head.replace('_', ' ')} head, {len(right):,} images: {int((~right).sum()):,} are named wrongly."
    blocks: list[Block] = [Text(about.capitalize())]
    if worst:
        rows = [
            (
                names[own],
                f"{totals[own]:,}",
                f"{hits[own] / totals[own]:.1%}",
                _taken_for(found.classes, named, own, names),
            )
            for own in worst
        ]
        blocks.append(Table(("class", "images", "top-1", "taken for"), rows))
        blocks += _examples(found, named, worst, names, split) if split else []
    return Section("confusion", "Confusion of the worst classes", blocks)


def _taken_for(classes: np.ndarray, named: np.ndarray, own: int, names: Sequence[str]) -> str:
    """The classes that are named most often in place of a class."""
    counts = Counter(named[(classes == own) & (named != own)].tolist()).most_common(_TAKEN_FOR)
    return ", ".join(f"{names[other]} ({count:,})" for other, count in counts)


def _examples(
    found: Predictions, named: np.ndarray, worst: Sequence[int], names: Sequence[str], split: Split
) -> list[Block]:
    """Images that are named wrongly, in turn of the worst classes."""
    blocks: list[Block] = []
    each = max(1, _IMAGES // len(worst))
    for own in worst:
        for number in np.flatnonzero((found.classes == own) & (named != own))[:each].tolist():
            image = Image.fromarray(decode(split.image(*split.address(number))))
            image.thumbnail((_SIDE, _SIDE))
            blocks.append(picture(f"{names[own]}, named {names[int(named[number])]}", image, small=True))
    return blocks
