"""Shard: references to images → a deterministic WebDataset tar and its index.

The tar holds, for each sample, the untouched image bytes, the class index and the original name. Times, owners
and keys are fixed, so the same references make the same bytes on any machine and in any attempt. Every image is
decoded once here, so that nothing unreadable is met later, by a teacher or in the tenth epoch.
"""

import io
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from webdataset import TarWriter

from schemas.config import Shards
from schemas.errors import PipelineError
from schemas.receipts import Made
from schemas.tables import INDEX
from stages.replay.draws import Draws, Purpose
from stages.sources import ImageRef, Listing

_SUFFIXES = {".jpeg": "jpg"}


@dataclass(frozen=True)
class ShardSpec:
    """One shard to make: its number and its images in order."""

    shard: int
    images: tuple[ImageRef, ...]

    @property
    def name(self) -> str:
        """The shard's part name."""
        return shard_name(self.shard)


def shard_name(shard: int) -> str:
    """`shard-000000` and so on."""
    return f"shard-{shard:06d}"


def plan_shards(listing: Listing, config: Shards, *, shuffle: bool) -> list[ShardSpec]:
    """Deal a listing into shards of nearly equal length, shuffled for training so that shards mix classes."""
    count = len(listing.images)
    order = Draws(config.seed, Purpose.SHUFFLE).at(0).permutation(count) if shuffle else np.arange(count)
    blocks = np.array_split(order, -(-count // config.samples_per_shard))
    return [ShardSpec(shard, tuple(listing.images[i] for i in block.tolist())) for shard, block in enumerate(blocks)]


class ShardMaker:
    """Makes shards of one source; see `__call__`."""

    def __init__(self, root: str, on_bad_image: str) -> None:
        self.root = root
        self.on_bad_image = on_bad_image

    def __call__(self, spec: ShardSpec, staging: Path) -> Made:
        """Make one shard's tar and index in a local folder.

        Raises:
            PipelineError: naming all unreadable images of the shard, unless they are skipped.
        """
        rows: list[dict[str, Any]] = []
        skipped: list[dict[str, str]] = []
        tar_path, index_path = staging / f"{spec.name}.tar", staging / f"{spec.name}.parquet"
        with tar_path.open("wb") as file, TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
            for image in spec.images:
                try:
                    data = Path(self.root, image.name).read_bytes()
                    height, width = check_image(data)
                except (OSError, ValueError) as error:
                    skipped.append({"name": image.name, "reason": _reason(error)})
                    continue
                key = f"{spec.shard:06d}-{len(rows):07d}"
                member = f"{key}.{_suffix(image.name)}"
                tar.write({"__key__": key, **_members(image, data)})
                crc32 = zlib.crc32(data)
                rows.append(dict(key=key, size=len(data), height=height, width=width, crc32=crc32, name=image.name))
                rows[-1] |= {"class": image.class_index, "member": member}
        if skipped and self.on_bad_image == "fail":
            raise PipelineError(_refusal(skipped))
        offsets = _offsets(tar_path)
        for row in rows:
            row["offset"] = offsets[row.pop("member")]
        pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), index_path, compression="zstd")
        facts = {"samples": len(rows), "skipped": skipped, "found": len(spec.images)}
        return Made(files={tar_path.name: tar_path, index_path.name: index_path}, rows=len(rows), facts=facts)


def check_image(data: bytes) -> tuple[int, int]:
    """Decode an image in full and return its height and width in pixels, EXIF orientation not applied.

    Raises:
        ValueError: with the cause, if it cannot be decoded to its last row.
    """
    if not data:
        raise ValueError("is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            image.draft("RGB", (1, 1))  # a JPEG's every coefficient is still read, its pixels are not all made
            image.load()
    except UnidentifiedImageError:
        raise ValueError("is not an image") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
    return height, width


def _members(image: ImageRef, data: bytes) -> dict[str, bytes]:
    about = json.dumps({"name": image.name}, ensure_ascii=False, separators=(",", ":"))
    return {_suffix(image.name): data, "cls": str(image.class_index).encode(), "json": about.encode()}


def _suffix(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return _SUFFIXES.get(suffix, suffix[1:])


def _offsets(tar_path: Path) -> dict[str, int]:
    with tarfile.open(tar_path, "r:") as tar:
        return {member.name: member.offset_data for member in tar}


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _refusal(bad: Sequence[dict[str, str]]) -> str:
    named = "; ".join(f"{one['name']} {one['reason']}" for one in bad)
    return f'unreadable images: {named} (mend or remove them, or set shards.on_bad_image = "skip")'
