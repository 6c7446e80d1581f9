"""Agreement: whose class the teacher names, class by class, and by what margins, in lines and as a picture.

Everything is read from what is stored; no teacher is needed. The picture is drawn as the contact sheet is.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from schemas.manifests import LabelManifest
from schemas.recipe import Recipe
from stages.data.split import Split
from stages.inspect.captions import VERDICTS
from stages.inspect.views import AgreementKind
from stages.label.label_set import LabelSet
from stages.label.margins import EDGES
from stages.plotting.text import INK, MUTED, PAPER, RULE, length, wrap, write
from stages.replay.order import pairing

KINDS: tuple[AgreementKind, ...] = ("own", "partner", "neither")
_WIDTH, _MARGIN, _PLOT = 960, 48, 160
_SHOWN = 10
_NAME = 250
_BODY, _LINE = 14, 22


def class_agreement(labels: LabelSet, split: Split, recipe: Recipe) -> np.ndarray:
    """How often a view's own class, its partner's and neither is named, by own class: int64 [K, 3].

    Raises:
        UserError: if a label file is not what was stored.
    """
    counts = np.zeros((len(split.classes), len(KINDS)), np.int64)
    for shard, rows in enumerate(split.rows):
        classes = split.index(shard).classes.astype(np.int64)
        for pass_ in range(labels.passes):
            pairs = pairing(recipe.seed, shard, pass_, rows)
            partner_of = np.zeros(rows, np.int64)
            partner_of[pairs] = pairs[:, ::-1]
            for view in range(pass_ * recipe.repeats, (pass_ + 1) * recipe.repeats):
                decisions = labels.decisions(shard, view)[pairs.ravel()]
                own, partner = classes[pairs.ravel()], classes[partner_of[pairs.ravel()]]
                kind = np.where(decisions == own, 0, np.where(decisions == partner, 1, 2))
                np.add.at(counts, (own, kind), 1)
    return counts


def agreement_lines(counts: np.ndarray, names: Sequence[str], manifest: LabelManifest) -> Iterator[str]:
    """Text for a terminal: the complete set, then the classes that are named least and most often."""
    yield f"unmixed centre crops: {manifest.agreement:.1%} named right"
    shares = counts.sum(0) / counts.sum()
    named = [f"{VERDICTS[kind][1]} {share:.1%}" for kind, share in zip(KINDS, shares, strict=True)]
    yield "mixed views: " + ", ".join(named)
    yield "margins: " + ", ".join(f"{name} {value:.3f}" for name, value in manifest.margins.items())
    yield f"within rounding of a tie: {manifest.near_ties:.3%}"
    yield f"{'class':>32}{'own':>8}{'partner':>9}{'neither':>9}{'views':>8}"
    for number in shown_classes(counts):
        own, partner, neither = counts[number] / counts[number].sum()
        yield f"{names[number][:31]:>32}{own:>8.1%}{partner:>9.1%}{neither:>9.1%}{counts[number].sum():>8}"


def draw_agreement(title: str, counts: np.ndarray, names: Sequence[str], manifest: LabelManifest) -> Image.Image:
    """The set at a glance: all classes in the order of agreement, those at both ends by name, and the margins."""
    order, ends = _by_own(counts), shown_classes(counts)
    blocks = [
        _heading(title, counts, manifest),
        _labelled(
            f"{len(order):,} classes with labels, from least to most agreement; height: share of a class's views, 0 to "
            "100%",
            _columns(counts[order]),
        ),
        _labelled("the classes at both ends" if len(ends) < len(order) else "the classes", _rows(counts, names, ends)),
        _labelled(
            f"margins: the largest logit less the second; {sum(manifest.margin_counts):,} decisions, "
            f"{max(manifest.margin_counts):,} in the highest column",
            _margins(manifest.margin_counts),
        ),
    ]
    height = sum(block.height + 28 for block in blocks)
    picture = Image.new("RGB", (_WIDTH + 2 * _MARGIN, height + 2 * _MARGIN - 28), PAPER)
    top = _MARGIN
    for block in blocks:
        picture.paste(block, (_MARGIN, top))
        top += block.height + 28
    return picture


def shown_classes(counts: np.ndarray) -> list[int]:
    """The classes to name: all that have views where they are few, else those at both ends of agreement."""
    order = _by_own(counts)
    return order if len(order) <= 2 * _SHOWN else [*order[:_SHOWN], *order[-_SHOWN:]]


def _by_own(counts: np.ndarray) -> list[int]:
    """The classes that have views, those whose own class is named least often first."""
    there = np.flatnonzero(counts.sum(1))
    shares = counts[there, 0] / counts[there].sum(1)
    return there[np.argsort(shares, kind="stable")].tolist()


def _heading(title: str, counts: np.ndarray, manifest: LabelManifest) -> Image.Image:
    lines = wrap(title, _WIDTH, 26)
    block = Image.new("RGB", (_WIDTH, 36 * len(lines) + 2 * _LINE + 30), PAPER)
    pen = ImageDraw.Draw(block)
    for nth, line in enumerate(lines):
        write(pen, (0, 36 * nth), line, 26, bold=True)
    top = 36 * len(lines) + 8
    about = f"{counts.sum():,} mixed views; {manifest.agreement:.1%} of unmixed centre crops are named right; "
    write(pen, (0, top), about + f"{manifest.near_ties:.3%} are within rounding of a tie", _BODY, MUTED)
    left = 0.0
    for kind, share in zip(KINDS, counts.sum(0) / counts.sum(), strict=True):
        pen.rectangle((left, top + _LINE + 12, left + 11, top + _LINE + 23), fill=VERDICTS[kind][0])
        text = f"{VERDICTS[kind][1]} {share:.1%}"
        write(pen, (left + 18, top + _LINE + 8), text, _BODY)
        left += 18 + length(text, _BODY) + 32
    return _hatched(block)


def _hatched(plot: Image.Image) -> Image.Image:
    """The picture with stripes in the colours of a partner's class and of neither, each in a direction of its own."""
    pixels = np.array(plot)
    down, across = np.indices(pixels.shape[:2])
    stripes: dict[AgreementKind, Any] = {"partner": down + across, "neither": down - across}
    for kind, lines in stripes.items():
        mine = (pixels == np.array(ImageColor.getrgb(VERDICTS[kind][0]))).all(-1)
        pixels[mine & (lines % 6 == 0)] = ImageColor.getrgb(PAPER)
    return Image.fromarray(pixels)


def _labelled(text: str, plot: Image.Image) -> Image.Image:
    block = Image.new("RGB", (_WIDTH, plot.height + _LINE + 6), PAPER)
    write(ImageDraw.Draw(block), (0, 0), text, _BODY, bold=True)
    block.paste(plot, (0, _LINE + 6))
    return block


def _columns(counts: np.ndarray) -> Image.Image:
    """A stacked column a class, all of one width; many classes share a pixel column."""
    shares = counts / counts.sum(1, keepdims=True)
    plot = Image.new("RGB", (_WIDTH, _PLOT), PAPER)
    pen = ImageDraw.Draw(plot)
    for x in range(_WIDTH):
        first = x * len(shares) // _WIDTH
        mine = shares[first : max(first + 1, (x + 1) * len(shares) // _WIDTH)].mean(0)
        bottom = float(_PLOT)
        for kind, share in zip(KINDS, mine, strict=True):
            if share:
                pen.line((x, bottom - _PLOT * share, x, bottom - 1), fill=VERDICTS[kind][0])
            bottom -= _PLOT * share
    return _hatched(plot)


def _rows(counts: np.ndarray, names: Sequence[str], chosen: Sequence[int]) -> Image.Image:
    """A stacked bar a class, with its name before and the share of its own class after it."""
    plot = Image.new("RGB", (_WIDTH, _LINE * len(chosen)), PAPER)
    pen = ImageDraw.Draw(plot)
    full = _WIDTH - _NAME - 70
    for nth, number in enumerate(chosen):
        shares = counts[number] / counts[number].sum()
        write(pen, (0, _LINE * nth + 1), wrap(names[number], _NAME - 12, _BODY)[0], _BODY)
        left = float(_NAME)
        for kind, share in zip(KINDS, shares, strict=True):
            if share:
                bar = left, _LINE * nth + 3, max(left, left + full * share - 1), _LINE * nth + 17
                pen.rectangle(bar, fill=VERDICTS[kind][0])
            left += full * share
        write(pen, (_NAME + full + 10, _LINE * nth + 1), f"{shares[0]:.0%}", _BODY, VERDICTS["own"][0])
    return _hatched(plot)


def _margins(counts: Sequence[int]) -> Image.Image:
    """A column a bin, the edges on a logarithmic axis below."""
    plot = Image.new("RGB", (_WIDTH, _PLOT + _LINE + 6), PAPER)
    pen = ImageDraw.Draw(plot)
    width = _WIDTH / len(counts)
    for nth, count in enumerate(counts):
        height = (_PLOT - 4) * count / max(counts)
        if count:
            pen.rectangle((nth * width + 1, _PLOT - max(height, 1), (nth + 1) * width - 2, _PLOT - 1), fill=INK)
    pen.line((0, _PLOT, _WIDTH, _PLOT), fill=RULE)
    for nth in range(0, len(EDGES), 4):
        text = f"{EDGES[nth]:.3g}"
        at = (nth + 1) * width
        pen.line((at, _PLOT, at, _PLOT + 4), fill=MUTED)
        write(pen, (at - length(text, 12) / 2, _PLOT + 6), text, 12, MUTED)
    return plot
