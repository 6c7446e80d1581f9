"""Shard: images of a listing → a deterministic WebDataset tar and its index.

The tar holds, for each sample, the image's bytes, the class index and the original name, as plain USTAR with
fixed times and owners, so the same images make the same bytes on any machine and in any attempt. Every image is
checked, so that nothing unreadable is met later, by a teacher or in the tenth epoch.

A tar that is adopted gets an index only, and stays where it is. Rejected: webdataset's TarWriter, and tarfile's own
headers, which take more time than a member's bytes; and the former does not report their offsets.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from schemas.config import ShardsConfig
from schemas.errors import BadImages, last_line
from schemas.receipts import PartOutput
from schemas.tables import INDEX
from stages.replay.pixels import open_image, to_rgb
from stages.shard.image_check import check_image
from stages.shard.plan import ShardSpec
from stages.shard.tar import PackedSample, adopted_row, write_tar
from stages.sources.listing import Source
from stages.sources.names import suffix_of
from stages.sources.reader import Reader, SourceImage
from stages.storage.store import Store

_KNOWN = ("jpg", "jpeg", "png", "webp")
"""Suffixes by which readers of WebDataset, timm's among them, find a sample's image."""
_SUFFIXES = {"jpeg": "jpg", "mpo": "jpg", "avif": "jpg", "jpeg2000": "jpg", "webp": "webp"}
"""Of images that have none of these: readers look into the bytes, but drop a member that is called otherwise."""
_QUALITY = 95


class ShardMaker:
    """Makes shards of one source; see `__call__`."""

    def __init__(self, source: Source, config: ShardsConfig) -> None:
        self._source, self._config = source, config
        self._reader = Reader(source)

    def __call__(self, spec: ShardSpec, staging: Path) -> PartOutput:
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
            rows = [adopted_row(sample) for sample in samples]
            facts["tar"] = self._identity(self._source.files[spec.shard])
        else:
            files[f"{spec.name}.tar"] = tar = staging / f"{spec.name}.tar"
            with tar.open("wb") as file:
                rows, sha256[tar.name] = write_tar(file, samples, spec.shard)
        if skipped and self._config.on_bad_image == "fail":
            raise BadImages(skipped)
        pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), index, compression="zstd")
        facts |= {"samples": len(rows), "skipped": skipped, "found": len(spec.images)}
        return PartOutput(files=files, rows=len(rows), facts=facts, sha256=sha256)

    def _decoded(self, spec: ShardSpec, skipped: list[dict[str, str]]) -> Iterator[PackedSample]:
        for row, found in enumerate(self._reader.read(spec.images)):
            sample, fault = self._judged(found)
            for _ in range(self._reader.read_attempts - 1):
                if sample is None:
                    sample, fault = self._judged(next(self._reader.read(spec.images.slice(row, 1))))
            if sample:
                yield sample
            else:
                skipped.append({"name": found.name, "reason": fault})

    def _judged(self, found: SourceImage) -> tuple[PackedSample | None, str]:
        """The image, or why it is bad."""
        try:
            return (None, found.fault) if found.fault else (self._sample(found), "")
        except ValueError as error:
            return None, str(error)
        except Exception as error:  # re-encoding met what checking did not
            return None, last_line(error)

    def _sample(self, found: SourceImage) -> PackedSample:
        height, width, kind = check_image(found.data)
        if 0 < self._config.max_side < max(height, width):
            data = shrink(found.data, self._config.max_side)
            height, width, _ = check_image(data)
            return PackedSample(found._replace(data=data), height, width, "jpg")
        named = suffix_of(found.name)
        return PackedSample(found, height, width, named if named in _KNOWN else _SUFFIXES.get(kind[1:], "png"))

    def _identity(self, path: str) -> dict[str, Any]:
        """An adopted tar's name, length and sha256, as in a receipt."""
        with Store(self._source.root).stream(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"path": path, "bytes": file.seek(0, os.SEEK_END), "sha256": digest}


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
