"""Tars of samples with the same bytes on every machine, and the rows of their index."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterable
from functools import cache
from typing import Any, BinaryIO, NamedTuple

from stages.sources.reader import SourceImage

_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)
"""Fields of a USTAR header."""
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class PackedSample(NamedTuple):
    """An image that decodes: what was found, its height and width in pixels, and the suffix it gets in a tar."""

    found: SourceImage
    height: int
    width: int
    suffix: str


def write_tar(file: BinaryIO, samples: Iterable[PackedSample], shard: int) -> tuple[list[dict[str, Any]], str]:
    """Write samples into a tar; the rows of its index, `schemas.tables.INDEX`, and the tar's sha256."""
    tar, rows = _HashedTar(file), []
    for number, sample in enumerate(samples):
        key, found = f"{shard:06d}-{number:07d}", sample.found
        image = f"{key}.{'jpg' if sample.suffix == 'jpeg' else sample.suffix}"
        label, about = str(found.class_index).encode(), _to_json({"name": found.name}).encode()
        tar.write(_member(f"{key}.cls", label) + tar_header(image, len(found.data)))
        rows.append(_row(sample, key, tar.length))
        tar.write(found.data)
        tar.write(_padding(found.data) + _member(f"{key}.json", about))
    return rows, tar.end()


def _member(name: str, data: bytes) -> bytes:
    return tar_header(name, len(data)) + data + _padding(data)


def _padding(data: bytes) -> bytes:
    return bytes(-len(data) % tarfile.BLOCKSIZE)


class _HashedTar:
    """A tar that is hashed as it is written, while its bytes are at hand; `length` is what it has of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.length = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Write what comes next."""
        self._file.write(data)
        self._digest.update(data)
        self.length += len(data)

    def end(self) -> str:
        """Write what ends a tar; its sha256."""
        self.write(bytes(-(self.length + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE))
        return self._digest.hexdigest()


def tar_header(name: str, size: int) -> bytes:
    """The header that tarfile makes of a plain file, read-only and of no time and no owner, by filling in a form.

    Args:
        name: ASCII, at most 100 characters.
        size: in bytes, less than 8 GiB.
    """
    form, blank = _form()
    named, sized = name.encode("ascii"), b"%011o\0" % size
    filled = bytearray(form)
    filled[: len(named)], filled[_SIZE] = named, sized
    filled[_CHECKSUM] = b"%06o\0 " % (blank + sum(named) + sum(sized))
    return bytes(filled)


@cache
def _form() -> tuple[bytes, int]:
    """A header without name and size, and its sum, counted with spaces for its checksum."""
    info = tarfile.TarInfo()
    info.mode = 0o444
    blank = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    blank[_SIZE], blank[_CHECKSUM] = bytes(12), b" " * 8
    return bytes(blank), sum(blank)


def adopted_row(sample: PackedSample) -> dict[str, Any]:
    """The row of the index for a sample of an adopted tar, `schemas.tables.INDEX`."""
    key = sample.found.name.partition("/")[2].removesuffix(os.path.splitext(sample.found.name)[1])
    return _row(sample, key, sample.found.offset)


def _row(sample: PackedSample, key: str, offset: int) -> dict[str, Any]:
    found = sample.found
    row = dict(key=key, offset=offset, size=len(found.data), height=sample.height, width=sample.width)
    return row | {"class": found.class_index, "crc32": zlib.crc32(found.data), "name": found.name}
