"""Centre crops of an image set, as models are measured on them.

They are timm's own evaluation transform on Pillow's decoding (resize the short side to size / crop_pct bicubic, centre
crop), so that figures compare with everybody's. Threads make them, as Pillow lets go of Python's lock while it decodes
and resizes; processes would each have to import timm first.

Legend: B images of a batch, S side of a crop.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from schemas.errors import UserError, last_line
from stages.data.image_set import EncodedImage, ImageSet
from stages.replay.pixels import open_image, to_rgb

_LONG = 32
"""Times the short side, of which the centre crop takes once at the most."""


class Crops(NamedTuple):
    """A batch: uint8 [B, S, S, 3], true classes int64 [B], and the images' names."""

    views: Tensor
    classes: Tensor
    names: list[str]


def centre_crops(
    image_set: ImageSet, block: int, *, image_size: int, crop_pct: float, batch: int, threads: int
) -> Iterator[Crops]:
    """A block's centre crops in batches, the last one smaller; threads make the next while one is used.

    Args:
        image_set: the images.
        block: which of its blocks.
        image_size: S.
        crop_pct: the crop's share of the resized short side.
        batch: B.
        threads: that make them.

    Raises:
        UserError: if an image cannot be read.
    """
    return crops_of(
        image_set,
        [(block, rows) for rows in batches_of(image_set.rows[block], batch)],
        image_size=image_size,
        crop_pct=crop_pct,
        threads=threads,
    )


def batches_of(count: int, batch: int, every: int = 1) -> list[range]:
    """Rows of a block in batches: all of its `count`, or every so many-th; the last batch may be smaller."""
    rows = range(0, count, every)
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def crops_of(
    image_set: ImageSet, batches: Sequence[tuple[int, range]], *, image_size: int, crop_pct: float, threads: int
) -> Iterator[Crops]:
    """Centre crops of batches of images, each given as its block and rows; see `centre_crops`.

    Raises:
        UserError: if an image cannot be read.
    """
    transform = create_transform(
        image_size, is_training=False, interpolation="bicubic", crop_pct=crop_pct, use_prefetcher=True
    )
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        before: list[tuple[EncodedImage, Future[np.ndarray]]] = []
        for block, rows in batches:
            now = [(one, pool.submit(_crop, transform, one)) for one in image_set.read(block, rows)]
            if before:
                yield _stacked(before)
            before = now
        if before:
            yield _stacked(before)


def _crop(transform: Callable[[Image.Image], np.ndarray], picture: EncodedImage) -> np.ndarray:
    """An image's centre crop, uint8 [S, S, 3]."""
    try:
        with open_image(picture.data) as image:
            return np.asarray(transform(_middle(to_rgb(image)))).transpose(1, 2, 0)
    except Exception as error:  # decoders raise whatever they meet
        cause = last_line(error)
        raise UserError(f"{picture.name}: cannot be decoded ({cause}); fix or remove it") from None


def _middle(image: Image.Image) -> Image.Image:
    """An image without the ends of a very long side: no centre crop reaches them, and resized they take gigabytes."""
    short, long = sorted(image.size)
    if long <= _LONG * short:
        return image
    cut = (long - _LONG * short) // 2  # as much at both ends, so that the centre stays
    width, height = image.size
    return image.crop((cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut))


def _stacked(made: Sequence[tuple[EncodedImage, "Future[np.ndarray]"]]) -> Crops:
    crops = np.stack([future.result() for _, future in made])
    pictures = [picture for picture, _ in made]
    return Crops(torch.from_numpy(crops), torch.tensor([one.label for one in pictures]), [one.name for one in pictures])
