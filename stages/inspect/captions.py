"""Captions of a view and of its sample: the lines of a contact sheet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from schemas.recipe import Recipe
from stages.inspect.views import AgreementKind, Sample, SeenView, verdict
from stages.replay.decide import DecidedMix, DecidedView
from stages.replay.policies import Op

VERDICTS: dict[AgreementKind, tuple[str, str]] = {
    "own": ("#06305f", "its own class"),
    "partner": ("#b45309", "its partner's"),
    "neither": ("#8a1c5b", "neither"),
}


@dataclass(frozen=True)
class Caption:
    """A line of a tile or of the head.

    Attributes:
        label: what it is called.
        text: the caption.
        mark: before the text, which takes its colour.
        absent: whether the caption states an absence, which is drawn faintly.
    """

    label: str
    text: str
    mark: AgreementKind | None = None
    absent: bool = False


def op_words(op: Op) -> str:
    """An operation and its strength as text; directions are those in which the picture moves."""
    return _OP_WORDS[op.name](op.level or 0)


_OP_WORDS: dict[str, Callable[[float], str]] = {
    "autocontrast": lambda level: "auto-contrast",
    "equalize": lambda level: "equalize",
    "invert": lambda level: "invert",
    "rotate": lambda level: f"rotate {abs(level):.0f}° {'anticlockwise' if level > 0 else 'clockwise'}",
    "posterize": lambda level: f"posterize to {level:.0f} bit{'' if level == 1 else 's'}",
    "solarize": lambda level: f"solarize from level {level:.0f}",
    "solarize_add": lambda level: f"solarize-add {level:.0f} levels",
    "color": lambda level: f"colour {level - 1:+.0%}",
    "contrast": lambda level: f"contrast {level - 1:+.0%}",
    "brightness": lambda level: f"brightness {level - 1:+.0%}",
    "sharpness": lambda level: f"sharpness {level - 1:+.0%}",
    "shear_x": lambda level: f"shear bottom {abs(level):.0%} {'left' if level > 0 else 'right'}",
    "shear_y": lambda level: f"shear right side {abs(level):.0%} {'up' if level > 0 else 'down'}",
    "translate_x": lambda level: f"shift {abs(level):.0%} {'left' if level > 0 else 'right'}",
    "translate_y": lambda level: f"shift {abs(level):.0%} {'up' if level > 0 else 'down'}",
}


def facts(sample: Sample, view: SeenView, recipe: Recipe, names: Sequence[str]) -> list[Caption]:
    """The lines below a view, the same labels in the same order for every view."""
    own, decided = names[sample.label], view.decided
    judged = verdict(sample.label, view)
    return [
        Caption("crop", _crop_words(decided, sample.image)),
        Caption("ops", ", ".join(map(op_words, decided.ops)) or "none", absent=not decided.ops),
        Caption("erased", _erase_words(decided, recipe), absent=not decided.erase),
        Caption("mix", mix_words(view.mix), absent=view.mix is None or view.mix.lam == 1),
        Caption("truth", _truth_words(own, view, names)),
        Caption("teacher", _teacher_words(view.decision, judged, names), judged, absent=judged is None),
    ]


def head_facts(
    sample: Sample, views: Sequence[SeenView], recipe: Recipe, about: Sequence[tuple[str, str]]
) -> list[Caption]:
    """The lines beside a sheet's photograph; `about` are further ones, as (label, text)."""
    height, width = sample.image.shape[:2]
    judged = [verdict(sample.label, view) for view in views]
    tally = [Caption("", f"{judged.count(mark)}  {words}", mark) for mark, (_, words) in VERDICTS.items()]
    return [
        Caption("image", f"{width} x {height} pixels"),
        Caption(
            "views", f"{len(views)} of {recipe.image_size} x {recipe.image_size}, {recipe.repeats} with each partner"
        ),
        Caption("policy", recipe.rand_augment or recipe.auto_augment or f"colour jitter {recipe.color_jitter:g}"),
        Caption("mixing", f"mixup {recipe.mixup_alpha:g}, CutMix {recipe.cutmix_alpha:g}" if recipe.mixes else "off"),
        *(Caption(label, text) for label, text in about),
        *([replace(tally[0], label="teacher names"), *tally[1:]] if any(judged) else []),
    ]


def _crop_words(decided: DecidedView, image: np.ndarray) -> str:
    crop = decided.crop
    share = crop.height * crop.width / (image.shape[0] * image.shape[1])
    return f"{crop.width} x {crop.height}, {share:.0%} of the image{', flipped' if decided.flip else ''}"


def _erase_words(decided: DecidedView, recipe: Recipe) -> str:
    if not decided.erase:
        return "nothing"
    box = decided.erase.box
    fill = "noise" if decided.erase.noise else "the mean colour"
    return f"{box.height * box.width / recipe.image_size**2:.0%} of the view, with {fill}"


def mix_words(mix: DecidedMix | None) -> str:
    """How two views are mixed."""
    if mix is None:
        return "sits out: its shard is odd in number"
    if mix.lam == 1:
        return "not mixed"
    if mix.box is None:
        return f"mixup, lambda {mix.lam:.2f}"
    return f"CutMix, lambda {mix.lam:.2f}, box {mix.box.width} x {mix.box.height}"


def _truth_words(own: str, view: SeenView, names: Sequence[str]) -> str:
    if view.partner is None or view.mix is None or view.mix.lam == 1:
        return own
    other = names[view.partner.label]
    if other == own:
        return f"{own} (both)"
    return f"{own} ({view.mix.lam:.0%}), {other} ({1 - view.mix.lam:.0%})"


def _teacher_words(decision: int | None, judged: AgreementKind | None, names: Sequence[str]) -> str:
    if decision is None or judged is None:
        return "not labelled"
    return f"{names[decision]} ({VERDICTS[judged][1]})"
