"""Image sets: the images that models are measured on, a sharded split or an unpacked source, in blocks.

A block is a unit of work: a shard, or a thousand images of a source that was never packed. Blocks do not depend on
who works on them, so every image is in exactly one, whatever the number of workers, and nothing is padded.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from schemas.config import EvaluateConfig, RunFile
from schemas.errors import MismatchError, UserError
from schemas.manifests import ShardManifest
from stages.data.split import Split
from stages.sources.class_labels import read_classes, read_labels
from stages.sources.class_names import Classes
from stages.sources.discover import list_source
from stages.sources.listing import Listing
from stages.sources.reader import Reader
from stages.storage.manifest import read_manifest
from stages.storage.store import Store

_BLOCK = 1000


class EncodedImage(NamedTuple):
    """An image: its name in its source, its class index, its file's bytes."""

    name: str
    label: int
    data: bytes


class ImageSet(Protocol):
    """Images in blocks. Picklable.

    Attributes:
        rows: how many images each block has.
        classes: class names by index.
        content: changes with any image.
        title: a folder name for it.
    """

    rows: tuple[int, ...]
    classes: tuple[str, ...]
    content: str
    title: str

    def read(self, block: int, rows: range) -> Iterator[EncodedImage]:
        """Images of a block.

        Raises:
            UserError: if one cannot be read.
        """


class ShardedImageSet:
    """A split that the shard stage stored; its blocks are its shards."""

    def __init__(self, split: Split, title: str) -> None:
        self.split, self.title = split, title
        self.rows, self.classes, self.content = split.rows, split.classes, split.content

    def read(self, block: int, rows: range) -> Iterator[EncodedImage]:
        """Images of a shard; raises UserError if one's bytes are not those that were sharded."""
        index = self.split.index(block)
        for row in rows:
            yield EncodedImage(index.names[row], int(index.classes[row]), self.split.image(block, row))


class SourceImageSet:
    """A source's unpacked images, which nothing has checked yet.

    All of its bytes are read once to name it: names and lengths stay the same where pixels of plain formats change.
    """

    def __init__(self, listing: Listing, classes: tuple[str, ...], title: str) -> None:
        if listing.refused:
            one = listing.refused[0]
            raise UserError(f"evaluate.source: {one['name']} {one['reason']}; remove it, every image counts")
        self.listing, self.classes = listing, classes
        count = len(listing.images)
        self.rows = tuple(min(_BLOCK, count - start) for start in range(0, count, _BLOCK))
        self._reader = Reader(listing.source)
        self.content = self._digest()
        self.title = f"{title}-{self.content[:8]}"

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_reader": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reader = Reader(self.listing.source)

    def _digest(self) -> str:
        """Hex sha256 over every image's name, class and bytes."""
        digest = hashlib.sha256()
        for block, count in enumerate(self.rows):
            for image in self.read(block, range(count)):
                digest.update(f"{image.name}\0{image.label}\0{len(image.data)}\0".encode())
                digest.update(image.data)
        return digest.hexdigest()

    def read(self, block: int, rows: range) -> Iterator[EncodedImage]:
        """Images of a block; raises UserError if one cannot be read."""
        images = self.listing.images.take([block * _BLOCK + row for row in rows])
        for found in self._reader.read(images):
            if found.fault:
                raise UserError(f"evaluate.source: {found.name} cannot be read ({found.fault}); fix or remove it")
            yield EncodedImage(found.name, found.class_index, found.data)


def open_image_set(config: RunFile) -> ImageSet:
    """The images that the run file's `[evaluate]` names.

    Raises:
        UserError: if there is no val split and no source, or the source cannot be listed.
        MismatchError: if their classes are not those of the train split.
    """
    settings, known = config.evaluate, known_classes(config)
    if not settings.source:
        if not Store(config.workspace).exists("shards/val/manifest.json") and not config.source.val:
            raise UserError("evaluate: there is no val split; set source.val and shard it, or set evaluate.source")
        split = Split.open(config.workspace, "val", config.cache)
        if known and split.classes != known:
            raise MismatchError(
                f"{split.store}: has {len(split.classes)} classes, the train split {len(known)} or others; delete the "
                "older folder of the two and run `deit-pipeline shard`"
            )
        return ShardedImageSet(split, "val")
    by_index = settings.class_folders == "indices"
    if by_index and not known:
        raise UserError(
            'evaluate.class_folders = "indices": indices of which classes? name them in source.classes, such as '
            '"imagenet-1k"'
        )
    numbers = tuple(map(str, range(len(known or ()))))
    given = known if known else read_classes(config.source.classes)
    listing = _list(settings, numbers if by_index else given)
    title = re.sub(r"[^A-Za-z0-9._-]+", "-", settings.source.partition("?")[0].rstrip("/").rpartition("/")[2])
    classes = known if by_index and known else listing.classes
    return SourceImageSet(listing, classes, title)


def known_classes(config: RunFile) -> tuple[str, ...] | None:
    """Class names by index, of the train split, else of the run file; None = a source's own."""
    manifest = read_manifest(Store(config.workspace).child("shards/train"), ShardManifest)
    if manifest:
        return manifest.classes
    given = read_classes(config.source.classes)
    return given if isinstance(given, tuple) else None


def _list(settings: EvaluateConfig, classes: Classes) -> Listing:
    try:
        labels = read_labels(settings.source_labels) if settings.source_labels else None
        return list_source(settings.source, "val", classes, labels)
    except UserError as error:  # it speaks of the key that a source usually is the value of
        raise UserError(str(error).replace("source.val", "evaluate.source")) from None
