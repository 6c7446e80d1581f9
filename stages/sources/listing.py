"""Listing: all images of a source as one Arrow table, in an order that is the same on every machine.

A table and not objects: 1.3 million images take about 100 MB here, and several times that as Python objects.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import PipelineError
from schemas.tables import LISTING

Layout = Literal["files", "members", "rows"]
"""Images are files of their own, members of tars, or rows of Parquet files."""

Classes = tuple[str, ...] | None

_BATCH = 65_536


@dataclass(frozen=True)
class Source:
    """Where a listing's bytes are: the root, and the tars or Parquet files below it. Picklable."""

    root: str
    layout: Layout
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """All images of a source.

    Attributes:
        source: where they are.
        images: `schemas.tables.LISTING`, in order.
        classes: class names by index.
        other_files: files that are no images.
        refused: name and reason of what looks like an image but is never read, such as a link in a tar.
        samples: whether the files are WebDataset tars, which may be adopted.
    """

    source: Source
    images: pa.Table
    classes: tuple[str, ...]
    other_files: int
    refused: tuple[dict[str, str], ...]
    samples: bool

    def fingerprint(self) -> str:
        """Changes with any image's name, class or length, not with the root or an archive's name."""
        digest = hashlib.sha256()
        for batch in self.images.to_batches(_BATCH):
            digest.update("\0".join(batch["name"].to_pylist()).encode())
            digest.update(batch["class"].to_numpy().astype("<u2").tobytes())
            digest.update(batch["size"].to_numpy().astype("<u8").tobytes())
        return digest.hexdigest()


class Collector:
    """Takes images one by one as a source is walked; `listing` makes the table."""

    def __init__(self) -> None:
        self.other_files = 0
        self.refused: list[dict[str, str]] = []
        self._classes: dict[str | int, int] = {}
        self._names: list[str] = []
        self._numbers = {name: array("Q") for name in LISTING.names if name != "name"}
        self._batches: list[pa.RecordBatch] = []

    def expect(self, class_name: str) -> None:
        """A class that must have an image."""
        self._classes.setdefault(class_name, len(self._classes))

    def refuse(self, name: str, reason: str) -> None:
        """An image that is never read."""
        self.refused.append({"name": printable(name), "reason": reason})

    def add(
        self, class_name: str | int, name: str, *, file: int = 0, block: int = 0, offset: int = 0, size: int = 0
    ) -> None:
        """An image of a class, by name or by index; the rest as in `schemas.tables.LISTING`."""
        if printable(name) != name:
            self.refuse(name, "has a name that is not UTF-8")
            return
        number = self._classes.setdefault(class_name, len(self._classes))
        self._names.append(name)
        for column, value in (("class", number), ("file", file), ("block", block), ("offset", offset), ("size", size)):
            self._numbers[column].append(value)
        if len(self._names) == _BATCH:
            self._flush()

    def listing(
        self,
        source: Source,
        classes: Classes,
        where: str,
        *,
        order: Classes = None,
        sort: bool = False,
        samples: bool = False,
    ) -> Listing:
        """All that was taken.

        Args:
            source: where the bytes are.
            classes: class names by index; None = `order`, or the sorted names.
            where: the run file's key and value, for messages.
            order: the names by index that the source brings itself.
            sort: by name; else in the order in which images were taken.
            samples: the files are WebDataset tars.

        Raises:
            PipelineError: if there is no image, a class has none, or a class is not in the list.
        """
        self._flush()
        images = pa.Table.from_batches(self._batches, schema=LISTING.set(1, pa.field("class", pa.uint32())))
        self._batches = []  # never more than two copies of a table in memory
        if not len(images):
            raise PipelineError(f"{where}: holds no images; see docs/sources.md for the forms a source can have")
        names = self._class_names(classes or order, where)
        index = {name: number for number, name in enumerate(names)}
        of_number = np.array([index[name] if isinstance(name, str) else name for name in self._classes], np.uint16)
        seen = np.bincount(images["class"].to_numpy(), minlength=len(of_number))
        if empty := [name for name, count in zip(self._classes, seen, strict=True) if not count]:
            raise PipelineError(f"{where}: class {empty[0]} has no images; add some or remove the class")
        images = images.set_column(1, LISTING.field(1), pa.array(of_number[images["class"].to_numpy()]))
        if sort:
            images = images.take(pc.sort_indices(images, [("name", "ascending"), ("offset", "ascending")]))
        if (twice := _named_twice(images["name"], sort)) is not None:
            raise PipelineError(f"{where}: holds {twice} twice; remove one, since its name could mean either")
        return Listing(source, images, names, self.other_files, tuple(self.refused), samples)

    def _class_names(self, given: Classes, where: str) -> tuple[str, ...]:
        numbers = [one for one in self._classes if isinstance(one, int)]
        found = [one for one in self._classes if isinstance(one, str)]
        if numbers and found:
            raise PipelineError(f"{where}: some classes are numbers and some are names, such as {found[0]}; use one")
        names = given or (tuple(map(str, range(max(numbers) + 1))) if numbers else tuple(sorted(found)))
        unknown: list[str | int] = [one for one in numbers if not 0 <= one < len(names)]
        unknown += sorted(set(found) - set(names))
        if unknown:
            raise PipelineError(
                f"{where}: class {unknown[0]} is not among the {len(names)} of source.classes or of the train split "
                f"({len(unknown)} such); rename it or add it to the list"
            )
        if len(names) > np.iinfo(np.uint16).max:
            raise PipelineError(f"{where}: has {len(names)} classes; at most 65535 can be told apart")
        return names

    def _flush(self) -> None:
        columns = [pa.array(self._names, pa.string())]
        for field in list(LISTING)[1:]:
            kind = pa.uint32() if field.name == "class" else field.type
            columns.append(pa.array(np.frombuffer(self._numbers[field.name], np.uint64)).cast(kind))
            self._numbers[field.name] = array("Q")
        self._batches.append(pa.record_batch(columns, schema=LISTING.set(1, pa.field("class", pa.uint32()))))
        self._names = []


def _named_twice(names: pa.ChunkedArray, is_sorted: bool) -> str | None:
    """A name that two images have."""
    if not is_sorted:
        if pc.count_distinct(names).as_py() == len(names):
            return None
        names = names.take(pc.sort_indices(names))
    same = pc.index(pc.equal(names[1:], names[:-1]), True).as_py() if len(names) > 1 else -1
    return names[same].as_py() if same >= 0 else None


def printable(name: str) -> str:
    """The name with what is not UTF-8 replaced."""
    return name.encode("utf-8", "replace").decode()


def plain(names: Sequence[str], count: int = 3) -> str:
    """The first few of many names, for messages."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
