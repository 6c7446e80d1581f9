"""ImageNet-Real: new human labels of the official validation images (Beyer et al. 2020).

An image has any number of true classes there, and 3,163 of the 50,000 have none and are not scored. The labels are
those that timm ships; an image is known by its original file name.
"""

import os
from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet

from schemas.errors import MismatchError

_IMAGES = 50_000


def real_labels(names: Sequence[str], classes: Sequence[str]) -> list[frozenset[int]]:
    """The true classes of validation images, in their order; an empty set = not scored.

    Args:
        names: of the images, which end in ILSVRC2012_val_00000001.JPEG and so on.
        classes: by index, ImageNet's synsets in their usual order.

    Raises:
        MismatchError: if the classes or an image are not ImageNet's.
    """
    refuse_other_classes(classes)
    known = _by_stem()
    stems = [os.path.splitext(os.path.basename(name))[0] for name in names]
    if lost := [name for name, stem in zip(names, stems, strict=True) if stem not in known]:
        raise MismatchError(
            f'evaluate.labels = "imagenet-real": {lost[0]} is no official validation image ({len(lost)} such); '
            'keep the original file names, or set evaluate.labels = "source"'
        )
    return [known[stem] for stem in stems]


def refuse_other_classes(classes: Sequence[str]) -> None:
    """Raise MismatchError unless classes are ImageNet's in their order: known before any image is looked at."""
    if tuple(classes) != _synsets():
        raise MismatchError(
            f'evaluate.labels = "imagenet-real": the {len(classes)} classes are not ImageNet\'s 1,000 in their order; '
            'set source.classes = "imagenet-1k", or evaluate.labels = "source"'
        )


@cache
def _synsets() -> tuple[str, ...]:
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def _by_stem() -> dict[str, frozenset[int]]:
    held = RealLabelsImagenet([""] * _IMAGES).real_labels  # it wants as many names as there are labels
    return {os.path.splitext(name)[0]: frozenset(labels) for name, labels in held.items()}
