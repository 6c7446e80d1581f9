"""Inspect: what was decided about a sample's views, made again and laid open.

A sample's first views are made exactly as the loader makes them and mixed by the trainer's own `mix`, so what is
shown is what teacher and student see, to the rounding of one level. Nothing is written here: records go to `sheet` for
people and to `as_json` for programs. Rejected: storing views while labelling, which costs what replay saves.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from timm.data import ImageNetInfo

from schemas.errors import UserError
from schemas.recipe import Recipe
from stages.data.split import Split
from stages.data.views import ViewRenderer, stack_mixes
from stages.label.label_set import LabelSet
from stages.replay.decide import DecidedMix, DecidedView
from stages.replay.decode import decode
from stages.replay.mix import mix, normalise
from stages.replay.order import pairing

AgreementKind = Literal["own", "partner", "neither"]
_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample at its address, with its place in the split.

    Attributes:
        number: over the whole split, in the order of shards.
        shard: of its address.
        row: of its address.
        name: of the image in its source.
        label: its true class.
        image: as decoded, uint8 RGB [height, width, 3].
    """

    number: int
    shard: int
    row: int
    name: str
    label: int
    image: np.ndarray


@dataclass(frozen=True, eq=False)
class Partner:
    """The other member of a sample's pair, in the same shard; its view of the same number, uint8 [S, S, 3]."""

    row: int
    label: int
    view: np.ndarray


@dataclass(frozen=True, eq=False)
class SeenView:
    """One view of a sample and what became of it.

    Attributes:
        number: of the view.
        decided: everything random about it.
        alone: the view before mixing, uint8 [S, S, 3].
        partner: whom it is mixed with; None = the sample sits out this pass, and no model sees the view.
        mix: how; None where it sits out.
        seen: as a model sees it, mixed, uint8 [S, S, 3]; None where it sits out.
        decision: the teacher's class for it; None where there is none.
    """

    number: int
    decided: DecidedView
    alone: np.ndarray
    partner: Partner | None
    mix: DecidedMix | None
    seen: np.ndarray | None
    decision: int | None


def find_sample(split: Split, text: str) -> tuple[int, int]:
    """The address that "17" (the split's sample 17, shard by shard) or "2:5" (shard 2, row 5) names.

    Raises:
        UserError: if it names none, saying what is allowed.
    """
    match = re.fullmatch(r"(?:(\d{1,9}):)?(\d{1,12})", text)
    if not match:
        raise UserError(f"--sample {text}: must be a number, such as 17, or SHARD:ROW, such as 0:17")
    shard, row = int(match[1] or 0), int(match[2])
    if match[1] is None:
        while shard < len(split.rows) and row >= split.rows[shard]:
            shard, row = shard + 1, row - split.rows[shard]
        if shard == len(split.rows):
            raise UserError(f"--sample {text}: the split's samples are numbered 0 to {len(split) - 1}")
    if shard >= len(split.rows):
        raise UserError(f"--sample {text}: the split's shards are numbered 0 to {len(split.rows) - 1}")
    if row >= split.rows[shard]:
        raise UserError(f"--sample {text}: the rows of shard {shard} are numbered 0 to {split.rows[shard] - 1}")
    return shard, row


def inspect_views(
    split: Split, recipe: Recipe, labels: LabelSet | None, address: tuple[int, int], count: int
) -> tuple[Sample, list[SeenView]]:
    """Make a sample's views 0 to `count` - 1 again.

    Args:
        split: the sharded split.
        recipe: of the views.
        labels: the teacher's decisions; None = without.
        address: shard and row of the sample.
        count: of views.

    Raises:
        UserError: if an image or a label file is not what was stored.
    """
    shard, row = address
    maker = ViewRenderer(split, recipe)
    views = [_view(maker, labels, shard, row, number) for number in range(count)]
    index = split.index(shard)
    sample = Sample(
        number=sum(split.rows[:shard]) + row,
        shard=shard,
        row=row,
        name=index.names[row],
        label=int(index.classes[row]),
        image=decode(split.image(shard, row)),
    )
    return sample, views


def verdict(label: int, view: SeenView) -> AgreementKind | None:
    """Whose class the teacher named: the sample's own, its partner's or neither; None without a decision."""
    if view.decision is None:
        return None
    if view.decision == label:
        return "own"
    return "partner" if view.partner and view.decision == view.partner.label else "neither"


def as_json(sample: Sample, views: Sequence[SeenView], classes: Sequence[str]) -> dict[str, Any]:
    """Sample and views as plain numbers and names; boxes in pixels, of the image for crops and of the view else."""
    return {
        "sample": {
            "number": sample.number,
            "shard": sample.shard,
            "row": sample.row,
            "name": sample.name,
            "height": sample.image.shape[0],
            "width": sample.image.shape[1],
            **_class(sample.label, classes),
        },
        "views": [
            {
                "view": view.number,
                **asdict(view.decided),
                "partner": {"row": view.partner.row, **_class(view.partner.label, classes)} if view.partner else None,
                "lam": view.mix.lam if view.mix else None,
                "box": asdict(view.mix.box) if view.mix and view.mix.box else None,
                "decision": None if view.decision is None else _class(view.decision, classes),
                "verdict": verdict(sample.label, view),
            }
            for view in views
        ],
    }


def readable(classes: Sequence[str]) -> list[str]:
    """The classes' names for people: a WordNet synset's first word where it is one ("tench"), else as they are.

    Two synsets with one first word (ImageNet has two cranes) keep their numbers behind it.
    """
    if not any(_SYNSET.fullmatch(name) for name in classes):
        return list(classes)
    wordnet = ImageNetInfo()
    words = [_first_word(wordnet, name) for name in classes]
    times = Counter(words)
    return [word if times[word] == 1 else f"{word} ({name})" for word, name in zip(words, classes, strict=True)]


def _first_word(wordnet: ImageNetInfo, name: str) -> str:
    try:
        described: str = wordnet.label_name_to_description(name)
    except KeyError:
        return name
    return described.partition(",")[0]


def _view(maker: ViewRenderer, labels: LabelSet | None, shard: int, row: int, number: int) -> SeenView:
    split, recipe = maker.split, maker.recipe
    side = recipe.image_size
    index = split.index(shard)
    decided = maker.decider.view(shard, row, number, int(index.heights[row]), int(index.widths[row]))
    pair_views = np.empty((2, side, side, 3), np.uint8)
    maker.view(shard, row, number, pair_views[0])
    pass_ = number // recipe.repeats
    pairs = pairing(recipe.seed, shard, pass_, split.rows[shard])
    places = np.argwhere(pairs == row)
    if not len(places):
        return SeenView(number, decided, pair_views[0], None, None, None, None)
    pair, member = places[0].tolist()
    partner = int(pairs[pair, 1 - member])
    maker.view(shard, partner, number, pair_views[1])
    decided_mix = maker.decider.mix(shard, pair, number)
    labelled = labels is not None and pass_ < labels.passes
    return SeenView(
        number=number,
        decided=decided,
        alone=pair_views[0],
        partner=Partner(partner, int(index.classes[partner]), pair_views[1]),
        mix=decided_mix,
        seen=_seen(pair_views, decided_mix),
        decision=labels.decision(shard, row, number) if labels and labelled else None,
    )


def _seen(pair_views: np.ndarray, decided: DecidedMix) -> np.ndarray:
    """The first of two views, uint8 [2, S, S, 3], mixed with the second: mixing commutes with normalising."""
    images = normalise(torch.from_numpy(pair_views), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    mixed = mix(images, stack_mixes([decided]))[0].permute(1, 2, 0)
    return np.asarray((mixed * 255).round().clamp(0, 255).to(torch.uint8))


def _class(label: int, classes: Sequence[str]) -> dict[str, Any]:
    return {"class": label, "class_name": classes[label]}
