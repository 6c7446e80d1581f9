"""Read the images of a listing again: a file, a range of a tar, a row of Parquet."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa

from schemas.errors import UserError
from stages.sources.listing import Source
from stages.sources.parquet import read_rows
from stages.storage.store import Store

_OPEN_FILES = 32


class SourceImage(NamedTuple):
    """An image: its name in the source, its class index, its bytes or why they cannot be read, and its location."""

    name: str
    class_index: int
    data: bytes
    fault: str
    offset: int


class Reader:
    """Reads a source's images; one a process."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._store = Store(source.root)
        self._open: Callable[[int], Any] = lru_cache(_OPEN_FILES)(self._open_file)

    @property
    def read_attempts(self) -> int:
        """Reads of an image before it counts as bad: a network may corrupt data."""
        return self._store.read_attempts

    def read(self, images: pa.Table) -> Iterator[SourceImage]:
        """The images of a part of a listing, in its order; those of Parquet are gathered first.

        Raises:
            UserError: if the source is gone.
        """
        rows = self._gather(images) if self.source.layout == "rows" else {}
        for image in images.to_pylist():
            data, fault = b"", ""
            try:
                if rows:
                    data = rows.pop((image["file"], image["block"], image["offset"]))
                else:
                    data = self._whole(image) if self.source.layout == "files" else self._member(image)
            except (OSError, ValueError) as error:
                fault = (error.strerror if isinstance(error, OSError) else None) or str(error).split("\n")[0]
            yield SourceImage(image["name"], image["class"], data, fault, image["offset"])

    def _whole(self, image: dict[str, Any]) -> bytes:
        data = self._store.read(image["name"])
        if len(data) != image["size"]:
            raise ValueError(f"has {len(data)} bytes, and had {image['size']} when it was listed")
        return data

    def _member(self, image: dict[str, Any]) -> bytes:
        handle = self._open(image["file"])
        data = self._store.read_at(handle, image["size"], image["offset"])
        if len(data) != image["size"]:
            raise ValueError("ends in the middle: its archive is cut off")
        return data

    def _gather(self, images: pa.Table) -> dict[tuple[int, int, int], bytes]:
        wanted: dict[int, dict[int, set[int]]] = {}
        columns = (images[name].to_pylist() for name in ("file", "block", "offset"))
        for file, block, row in zip(*columns, strict=True):
            wanted.setdefault(file, {}).setdefault(block, set()).add(row)
        found = {}
        for file, blocks in sorted(wanted.items()):
            with self._store.stream(self.source.files[file]) as stream:
                for block, row, data in read_rows(stream, blocks):
                    found[file, block, row] = data
        return found

    def _open_file(self, number: int) -> Any:
        path = self.source.files[number]
        try:
            return self._store.open(path)
        except FileNotFoundError:
            raise UserError(f"{self._store.display_path(path)}: is missing; it was there when it was listed") from None
