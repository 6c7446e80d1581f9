"""Shard: images of a listing → a deterministic WebDataset tar and its index.

The tar holds, for each sample, the image's bytes, the class index and the original name, as plain USTAR with
fixed times and owners, so the same images make the same bytes on any machine and in any attempt. Every image is
checked, so that nothing unreadable is met later, by a teacher or in the tenth epoch.

A tar that is adopted gets an index only, and stays where it is. Rejected: webdataset's TarWriter, and tarfile's own
headers, which take more time than a member's bytes; and the former does not say where those lie.
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from schemas.config import Shards
from schemas.errors import BadImages, PipelineError, last_line
from schemas.receipts import Made
from schemas.tables import INDEX
from stages.replay.draws import Draws, Purpose
from stages.replay.pixels import open_image, to_rgb
from stages.shard.image_check import check_image
from stages.sources.listing import Listing, Source
from stages.sources.names import suffix_of
from stages.sources.reader import Found, Reader
from stages.storage.store import Store

_KNOWN = ("jpg", "jpeg", "png", "webp")
"""Suffixes by which readers of WebDataset, timm's among them, find a sample's image."""
_SUFFIXES = {"jpeg": "jpg", "mpo": "jpg", "avif": "jpg", "jpeg2000": "jpg", "webp": "webp"}
"""Of images that have none of these: readers look into the bytes, but drop a member that is called otherwise."""
_QUALITY = 95
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)
"""Fields of a USTAR header."""
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_WITHIN_BLOCKS = 1
"""Address of a shard's own shuffling, where the listing is shuffled by blocks; 0 is the listing's."""


class Sample(NamedTuple):
    """An image that decodes: what was found, its height and width in pixels, and the suffix it gets in a tar."""

    found: Found
    height: int
    width: int
    suffix: str


@dataclass(frozen=True)
class ShardSpec:
    """One shard to make: its number and its images in order, `schemas.tables.LISTING`."""

    shard: int
    images: pa.Table

    @property
    def name(self) -> str:
        """The shard's part name."""
        return shard_name(self.shard)


def shard_name(shard: int) -> str:
    """`shard-000000` and so on."""
    return f"shard-{shard:06d}"


def plan_shards(listing: Listing, config: Shards, *, shuffle: bool) -> list[ShardSpec]:
    """Deal a listing into shards of nearly equal length, shuffled for training so that shards mix classes.

    Adopted tars are the shards. The rows of Parquet are shuffled by row groups, then within a shard.

    Raises:
        PipelineError: if tars are to be adopted that are no WebDataset shards.
    """
    images = listing.images
    if config.adopt:
        if not listing.samples:
            raise PipelineError("shards.adopt: the source is not WebDataset tars; unset it, so that they are written")
        ends = np.searchsorted(images["file"].to_numpy(), np.arange(len(listing.source.files)), side="right")
        blocks = np.split(np.arange(len(images)), ends[:-1])
    else:
        draws = Draws(config.seed, Purpose.SHUFFLE)
        by_blocks = listing.source.layout == "rows"
        order = np.arange(len(images))
        if shuffle:
            order = _block_order(images, draws) if by_blocks else draws.at(0).permutation(len(images))
        blocks = np.array_split(order, -(-len(images) // config.samples_per_shard))
        if shuffle and by_blocks:
            blocks = [b[draws.at(_WITHIN_BLOCKS, shard).permutation(len(b))] for shard, b in enumerate(blocks)]
    return [ShardSpec(shard, images.take(pa.array(block))) for shard, block in enumerate(blocks)]


def _block_order(images: pa.Table, draws: Draws) -> np.ndarray:
    """Rows with their blocks in random order, a block's rows together and in theirs."""
    file, block = images["file"].to_numpy(), images["block"].to_numpy()
    starts = np.flatnonzero(np.r_[True, (np.diff(file) != 0) | (np.diff(block) != 0)])
    blocks = np.split(np.arange(len(images)), starts[1:])
    return np.concatenate([blocks[number] for number in draws.at(0).permutation(len(blocks))])


class ShardMaker:
    """Makes shards of one source; see `__call__`."""

    def __init__(self, source: Source, config: Shards) -> None:
        self._source, self._config = source, config
        self._reader = Reader(source)

    def __call__(self, spec: ShardSpec, staging: Path) -> Made:
        """Make one shard's tar and index, or an adopted tar's index, in a local folder.

        Raises:
            BadImages: naming all unreadable images of the shard, unless they are skipped.
        """
        skipped: list[dict[str, str]] = []
        samples = self._decoded(spec, skipped)
        index = staging / f"{spec.name}.parquet"
        files: dict[str, bytes | Path] = {index.name: index}
        facts: dict[str, Any] = {}
        sha256: dict[str, str] = {}
        if self._config.adopt:
            rows = [_adopted_row(sample) for sample in samples]
            facts["tar"] = self._identity(self._source.files[spec.shard])
        else:
            files[f"{spec.name}.tar"] = tar = staging / f"{spec.name}.tar"
            with tar.open("wb") as file:
                rows, sha256[tar.name] = write_tar(file, samples, spec.shard)
        if skipped and self._config.on_bad_image == "fail":
            raise BadImages(skipped)
        pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), index, compression="zstd")
        facts |= {"samples": len(rows), "skipped": skipped, "found": len(spec.images)}
        return Made(files=files, rows=len(rows), facts=facts, sha256=sha256)

    def _decoded(self, spec: ShardSpec, skipped: list[dict[str, str]]) -> Iterator[Sample]:
        for row, found in enumerate(self._reader.read(spec.images)):
            sample, fault = self._judged(found)
            for _ in range(self._reader.askings - 1):
                if sample is None:
                    sample, fault = self._judged(next(self._reader.read(spec.images.slice(row, 1))))
            if sample:
                yield sample
            else:
                skipped.append({"name": found.name, "reason": fault})

    def _judged(self, found: Found) -> tuple[Sample | None, str]:
        """The image, or why it is bad."""
        try:
            return (None, found.fault) if found.fault else (self._sample(found), "")
        except ValueError as error:
            return None, str(error)
        except Exception as error:  # re-encoding met what checking did not
            return None, last_line(error)

    def _sample(self, found: Found) -> Sample:
        height, width, kind = check_image(found.data)
        if 0 < self._config.max_side < max(height, width):
            data = shrink(found.data, self._config.max_side)
            height, width, _ = check_image(data)
            return Sample(found._replace(data=data), height, width, "jpg")
        named = suffix_of(found.name)
        return Sample(found, height, width, named if named in _KNOWN else _SUFFIXES.get(kind[1:], "png"))

    def _identity(self, path: str) -> dict[str, Any]:
        """An adopted tar's name, length and sha256, as in a receipt."""
        with Store(self._source.root).stream(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"path": path, "bytes": file.seek(0, os.SEEK_END), "sha256": digest}


def write_tar(file: BinaryIO, samples: Iterable[Sample], shard: int) -> tuple[list[dict[str, Any]], str]:
    """Write samples into a tar; the rows of its index, `schemas.tables.INDEX`, and the tar's sha256."""
    tar, rows = _Tar(file), []
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


class _Tar:
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


def packing_versions() -> dict[str, str]:
    """Versions of the libraries that touch an image's bytes or shuffle."""
    return {"numpy": np.__version__, "pillow": PIL.__version__, "pyarrow": pa.__version__}


def shrink(data: bytes, max_side: int) -> bytes:
    """An image as a JPEG whose longer side has `max_side` pixels: Lanczos, quality 95, no subsampling of colour."""
    with open_image(data) as image:
        pixels = to_rgb(image)
    pixels.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=None)
    out = io.BytesIO()
    pixels.save(out, "JPEG", quality=_QUALITY, subsampling=0)
    return out.getvalue()


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


def _adopted_row(sample: Sample) -> dict[str, Any]:
    key = sample.found.name.partition("/")[2].removesuffix(os.path.splitext(sample.found.name)[1])
    return _row(sample, key, sample.found.offset)


def _row(sample: Sample, key: str, offset: int) -> dict[str, Any]:
    found = sample.found
    row = dict(key=key, offset=offset, size=len(found.data), height=sample.height, width=sample.width)
    return row | {"class": found.class_index, "crc32": zlib.crc32(found.data), "name": found.name}
