"""Listing: all images of a source as one Arrow table, in an order that is the same on every machine.

A table and not objects: 1.3 million images take about 100 MB here, and several times that as Python objects.
"""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import UserError
from schemas.tables import LISTING
from stages.sources.class_names import (
    MOST_CLASSES,
    NUMERIC,
    Classes,
    are_indices,
    check_names,
    doubtful_order,
    in_order,
    look_alike,
)

Layout = Literal["files", "members", "rows"]
"""Images are files of their own, members of tars, or rows of Parquet files."""

_BATCH = 65_536


class LeftOut(TypedDict):
    """Files that are not taken for one reason: how many, and the first of them."""

    reason: str
    count: int
    first: str


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
        left_out: reason, count and first name of files that are not taken, a row a reason.
        refused: name and reason of what looks like an image but is never read, such as a link in a tar.
        samples: whether the files are WebDataset tars, which may be adopted.
        what: what the source was found to be, and where its classes come from, for people.
        naming: how the classes' names were found; "" = they were given.
        warnings: what may be other than it seems.
        beside: folders and files that are other sources, such as those of another split.
    """

    source: Source
    images: pa.Table
    classes: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    refused: tuple[dict[str, str], ...]
    samples: bool
    what: str
    naming: str
    warnings: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def other_files(self) -> int:
        """Number of files that are not taken."""
        return sum(one["count"] for one in self.left_out)

    def reading(self, given: str) -> str:
        """A line with the form of the source; `given` is the origin of given names."""
        naming = self.naming or f"names from {given}"
        return f"{self.what}, {len(self.classes):,} {naming}, {len(self.images):,} images"

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
        self.refused: list[dict[str, str]] = []
        self.taken = 0
        self._left_out: dict[str, LeftOut] = {}
        self._classes: dict[str | int, int] = {}
        self._names: list[str] = []
        self._numbers = {name: array("Q") for name in LISTING.names if name != "name"}
        self._batches: list[pa.RecordBatch] = []

    def expect(self, class_name: str) -> None:
        """A class that must have an image."""
        if printable(class_name) == class_name:  # else its images are refused one by one
            self._classes.setdefault(class_name, len(self._classes))

    def refuse(self, name: str, reason: str) -> None:
        """An image that is never read."""
        self.refused.append({"name": printable(name), "reason": reason})

    def leave_out(self, reason: str, name: str) -> None:
        """A file that is not taken."""
        name = printable(name)
        one = self._left_out.setdefault(reason, {"reason": reason, "count": 0, "first": name})
        one["count"] += 1
        one["first"] = min(one["first"], name)  # a disk gives names in any order

    def add(
        self, class_name: str | int, name: str, *, file: int = 0, block: int = 0, offset: int = 0, size: int = 0
    ) -> None:
        """An image of a class, by name or by index; the rest as in `schemas.tables.LISTING`."""
        if printable(name) != name:
            self.refuse(name, "has a name that is not UTF-8")
            return
        number = self._classes.setdefault(class_name, len(self._classes))
        self.taken += 1
        self._names.append(name)
        for column, value in (("class", number), ("file", file), ("block", block), ("offset", offset), ("size", size)):
            self._numbers[column].append(value)
        if len(self._names) == _BATCH:
            self._flush()

    def listing(
        self,
        source: Source,
        classes: Classes,
        context: str,
        *,
        what: str,
        order: tuple[str, ...] | None = None,
        sort: bool = False,
        samples: bool = False,
        warnings: Sequence[str] = (),
    ) -> Listing:
        """All that was taken.

        Args:
            source: where the bytes are.
            classes: class names by index, or how the source's own are put in order.
            context: the run file's key and value, for messages.
            what: the source, and where its classes come from, for people.
            order: the names by index that the source brings itself.
            sort: by name; else in the order in which images were taken.
            samples: the files are WebDataset tars, whose classes may be texts that are indices.
            warnings: what may be other than it seems.

        Raises:
            UserError: if there is no image, a class has none, or a class is not in the list.
        """
        self._flush()
        images = pa.Table.from_batches(self._batches, schema=LISTING.set(1, pa.field("class", pa.uint32())))
        self._batches = []  # never more than two copies of a table in memory
        if not len(images):
            raise UserError(
                f"{context}: holds no images{_instead(self._left_out, self.refused)}; see docs/sources.md for the "
                "forms a source can have"
            )
        if samples:
            self._tell_indices(classes, context)
        names, naming = self._class_names(classes, order, context, images)
        try:
            alike = "" if isinstance(classes, tuple) else check_names(names)
        except ValueError as error:
            raise UserError(f"{context}: {error}; rename the classes that are meant") from None
        index = {name: number for number, name in enumerate(names)}
        of_number = np.array([index[name] if isinstance(name, str) else name for name in self._classes], np.uint16)
        seen = np.bincount(images["class"].to_numpy(), minlength=len(of_number))
        if empty := [name for name, count in zip(self._classes, seen, strict=True) if not count]:
            raise UserError(
                f"{context}: class {empty[0]} has no images{_instead(self._left_out, ())}; add some or remove the class"
            )
        images = images.set_column(1, LISTING.field(1), pa.array(of_number[images["class"].to_numpy()]))
        if sort:
            images = images.take(pc.sort_indices(images, [("name", "ascending"), ("offset", "ascending")]))
        if (twice := _named_twice(images["name"], sort)) is not None:
            raise UserError(f"{context}: holds {twice} twice; remove one, since its name could mean either")
        warned = [*warnings, alike, "" if classes or order else doubtful_order(names)]
        if not isinstance(classes, tuple) and len(names) > len(of_number):
            absent = names[min(set(range(len(names))) - set(of_number.tolist()))]
            kind = "classes" if order else "class indices"
            warned.append(f"{len(names) - len(of_number)} of {len(names)} {kind} have no images, such as {absent}")
        left_out = tuple(one for _, one in sorted(self._left_out.items()))
        refused = tuple(sorted(self.refused, key=lambda one: one["name"]) if sort else self.refused)
        warned = [warning for warning in warned if warning]
        return Listing(source, images, names, left_out, refused, samples, what, naming, tuple(warned))

    def _tell_indices(self, classes: Classes, context: str) -> None:
        """Labels that are indices become numbers."""
        texts = [one for one in self._classes if isinstance(one, str)]
        try:
            indices = are_indices(texts, classes if isinstance(classes, tuple) else None)
        except ValueError as error:
            raise UserError(f"{context}: {error}; list the classes' names in source.classes") from None
        if indices:
            self._classes = {int(one): number for one, number in self._classes.items()}

    def _class_names(
        self, classes: Classes, order: tuple[str, ...] | None, context: str, images: pa.Table
    ) -> tuple[tuple[str, ...], str]:
        """Class names by index, and how they were found."""
        numbers = [one for one in self._classes if isinstance(one, int)]
        found = [one for one in self._classes if isinstance(one, str)]
        if numbers and found:
            raise UserError(f"{context}: some classes are numbers and some are names, such as {found[0]}; use one")
        given, naming = (classes, "") if isinstance(classes, tuple) else (order, "names that its files give")
        count = len(given) if given else max(numbers) + 1 if numbers else len(found)
        if count > MOST_CLASSES:
            example = _example(images, self._classes[max(numbers)]) if numbers and not given else ""
            raise UserError(f"{context}: has {count} classes{example}; at most {MOST_CLASSES} can be told apart")
        if not given and numbers:
            given, naming = tuple(map(str, range(count))), "class indices"
        elif not given:
            if classes == NUMERIC and (wrong := [one for one in found if not (one.isascii() and one.isdecimal())]):
                raise UserError(f'{context}: class {wrong[0]} is no number, as source.classes = "numeric" needs')
            given, naming = in_order(found, classes), f"names, {'by number' if classes else 'sorted'}"
        there = set(given)
        unknown: list[str | int] = [one for one in numbers if not 0 <= one < len(given)]
        unknown += sorted(one for one in found if one not in there)
        if unknown:
            alike = look_alike(str(unknown[0]), given)
            differs = f", which has {alike!a} where this is {unknown[0]!a}" if alike else ""
            raise UserError(
                f"{context}: class {unknown[0]} is not among the {len(given)} of source.classes or of the train split"
                f"{differs} ({len(unknown)} such{_example(images, self._classes[unknown[0]])}); rename it or add it to "
                "the list"
            )
        return given, naming

    def _flush(self) -> None:
        columns = [pa.array(self._names, pa.string())]
        for field in list(LISTING)[1:]:
            kind = pa.uint32() if field.name == "class" else field.type
            columns.append(pa.array(np.frombuffer(self._numbers[field.name], np.uint64)).cast(kind))
            self._numbers[field.name] = array("Q")
        self._batches.append(pa.record_batch(columns, schema=LISTING.set(1, pa.field("class", pa.uint32()))))
        self._names = []


def _example(images: pa.Table, number: int) -> str:
    """The name of an image of the class that was met as the given number."""
    at = pc.index(images["class"], number).as_py()
    return f", such as that of {images['name'][at]}" if at >= 0 else ""


def _instead(left_out: Mapping[str, LeftOut], refused: Sequence[dict[str, str]]) -> str:
    """What is there in place of images."""
    said = [f"{one['count']} {one['reason']} (such as {one['first']})" for one in left_out.values()]
    said += [f"{len(refused)} that are never read ({refused[0]['name']} {refused[0]['reason']})"] if refused else []
    return f", but {', '.join(said)}" if said else ""


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
