"""The images that a plan is for: how many, in which shards, how long, and a few of them to measure on.

Shards that are there are counted as they are. Otherwise the source is listed, and dealt into shards as the shard stage
deals it. Without a source a number of made photographs stands for it.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from schemas.config import CacheConfig, RunFile
from schemas.errors import UserError
from schemas.manifests import ShardManifest
from stages.data.split import Split
from stages.shard.plan import plan_shards
from stages.sources.class_labels import read_classes
from stages.sources.discover import list_sources
from stages.sources.listing import Listing
from stages.sources.reader import Reader
from stages.storage.manifest import read_manifest
from stages.storage.store import Store

_MADE_SIDES = (500, 375)
_IMAGENET = 1000
"""Classes where neither shards, source nor run file name any."""


class SampleImage(NamedTuple):
    """One image to measure on: the suffix of its name, its class index and its file's bytes."""

    suffix: str
    label: int
    data: bytes


@dataclass(frozen=True)
class Facts:
    """What is known of a plan's images before anything is packed.

    Attributes:
        rows: images of each shard of the train split.
        val_images: images of the val split; 0 = there is none.
        classes: number of classes.
        encoded_bytes: of all images of the train split; 0 = known by the sample only.
        val_bytes: the same of the val split.
        packed_bytes: of all tars of the train split, where they are there; 0 = they are not.
        origin: where this is known from, for people.
        sample: a few images, spread evenly.
    """

    rows: tuple[int, ...]
    val_images: int
    classes: int
    encoded_bytes: int
    val_bytes: int
    packed_bytes: int
    origin: str
    sample: tuple[SampleImage, ...]

    def __len__(self) -> int:
        """Images of the train split."""
        return sum(self.rows)

    @property
    def images(self) -> int:
        """The same."""
        return len(self)

    @property
    def pairs(self) -> int:
        """Pairs that are mixed in a pass."""
        return sum(rows // 2 for rows in self.rows)


def known_images(config: RunFile, count: int, made: int = 0) -> Facts:
    """Look at the shards of the workspace, else list the source.

    Args:
        config: the run file.
        count: images of the sample.
        made: so many images of photographs' size in place of shards and source; 0 = none.

    Raises:
        UserError: if there are neither shards nor a source, or the source cannot be listed or read.
    """
    if made:
        return _made(config, count, made)
    if read_manifest(Store(config.workspace).child("shards/train"), ShardManifest):
        return _packed(config, count)
    if not config.source.train:
        raise UserError(
            "estimate: there are no images to measure on; set source.train, or say how many there will be: --images N"
        )
    return _listed(config, count)


def _listed(config: RunFile, count: int) -> Facts:
    listings = list_sources(config.source)
    train, val = listings["train"], listings.get("val")
    rows = tuple(len(spec.images) for spec in plan_shards(train, config.shards, shuffle=False))
    return Facts(
        rows=rows,
        val_images=len(val.images) if val else 0,
        classes=len(train.classes),
        encoded_bytes=_bytes_of(train),
        val_bytes=_bytes_of(val) if val else 0,
        packed_bytes=0,
        origin=f"source.train, {len(train.images):,} images listed",
        sample=tuple(_read(train, count)),
    )


def _bytes_of(listing: Listing) -> int:
    """Of all images; of Parquet's rows a listing knows the row group's."""
    if listing.source.layout == "rows":
        return 0
    return int(listing.images["size"].to_numpy().sum())


def _read(listing: Listing, count: int) -> Iterator[SampleImage]:
    numbers = _spread(len(listing.images), count)
    for found in Reader(listing.source).read(listing.images.take(numbers)):
        if not found.fault:
            yield SampleImage(found.name.rpartition(".")[2].lower(), found.class_index, found.data)


def _packed(config: RunFile, count: int) -> Facts:
    split = Split.open(config.workspace, "train", CacheConfig())
    val = read_manifest(Store(config.workspace).child("shards/val"), ShardManifest)
    tars = [split.tar(shard).bytes for shard in range(len(split.rows))]
    sample = []
    for number in _spread(len(split), count):
        shard, row = split.address(number)
        index = split.index(shard)
        suffix = index.names[row].rpartition(".")[2].lower()
        sample.append(SampleImage(suffix, int(index.classes[row]), split.image(shard, row)))
    return Facts(
        rows=split.rows,
        val_images=val.samples if val else 0,
        classes=len(split.classes),
        encoded_bytes=0,
        val_bytes=0,
        packed_bytes=sum(tars),
        origin=f"the {len(split.rows):,} shards of the workspace",
        sample=tuple(sample),
    )


def _made(config: RunFile, count: int, made: int) -> Facts:
    given = read_classes(config.source.classes)
    classes = len(given) if isinstance(given, tuple) else _IMAGENET
    shards = -(-made // config.shards.samples_per_shard)
    rows = tuple(len(block) for block in np.array_split(np.empty(made, bool), shards))
    sample = tuple(SampleImage("jpg", number % classes, _photograph(number)) for number in range(count))
    origin = f"--images {made}: made photographs of {_MADE_SIDES[0]} x {_MADE_SIDES[1]} pixels"
    return Facts(rows, 0, classes, 0, 0, 0, origin, sample)


def _photograph(number: int) -> bytes:
    """A JPEG of a smooth random picture with grain, about as long as a photograph of that size."""
    random, (width, height) = np.random.default_rng(number), _MADE_SIDES
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    grainy = np.clip(smooth + random.normal(0, 12, (height, width, 1)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(grainy).save(out, "JPEG", quality=90)
    return out.getvalue()


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` numbers below `total`, evenly spread."""
    return [int(number) for number in np.unique(np.linspace(0, total - 1, min(count, total)).round())]
