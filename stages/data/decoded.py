"""Decoded images on a local disk: mapped into memory, bounded, filled as they are decoded, shared by all processes.

A shard's pixels are one file, named by what they are decoded from and with, of a length that the shard's index tells
before anything is decoded. It begins with a number for each image, zero until its pixels are there: they are written
first, then the sum that proves them. So a process that dies leaves nothing that counts, two that decode one image write
the same bytes, and an image that a crash of the machine or a bad disk has changed is decoded again. How the bound holds
is `stages/storage/bounded.py`; a shard without space is decoded at each read, and cached shards stay, since
evicting one for another of the same split would never hit.
"""

import hashlib
import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from schemas.errors import UserError
from stages.data.split import Split
from stages.replay.decode import DECODERS
from stages.storage.bounded import GB, BoundedFolder, cache_folder
from stages.storage.locks import held

_FORMAT = 1
_ALIGNMENT = 64
_WORD = 8
_OPEN_SHARDS = 256
_PAGE = mmap.PAGESIZE


class DecodedCache:
    """The decoded images of a split's shards; one a process.

    Args:
        split: of the images, whose `cache` has the folder.
    """

    def __init__(self, split: Split) -> None:
        self._split, settings = split, split.cache
        path, limit = cache_folder(settings.decoded_folder, "decoded"), int(settings.decoded_gigabytes * GB)
        self._folder = BoundedFolder(path, ".pixels", limit, "cache.decoded_gigabytes")
        self._prefix = _digest(f"{_FORMAT} {split.content} {sorted(DECODERS.items())}")
        self._opened: OrderedDict[int, _Pixels | None] = OrderedDict()  # in no cycle: they end with their last image

    def image(self, shard: int, row: int, decoded: Callable[[], np.ndarray]) -> np.ndarray | None:
        """An image, uint8 RGB (height, width, 3), not to be written to; None where its shard has no space.

        Args:
            shard: its shard.
            row: its row there.
            decoded: decodes it, where it is not kept yet or has changed.

        Raises:
            UserError: if it cannot be decoded, the disk is full, or not even one shard fits.
        """
        pixels = self._of(shard)
        if pixels is None:
            return None
        image = pixels.read(row)
        if image is None:
            image = decoded()
            self._or_refuse(partial(pixels.write, row, image))
        return image

    def complete(self, shard: int) -> bool:
        """Whether all images of a shard are kept, so that its tar is not read."""
        pixels = self._of(shard)
        return pixels is not None and bool(pixels.sums.all())

    def _of(self, shard: int) -> "_Pixels | None":
        """A shard's pixels; None without space, which is tried again after reads of many other shards."""
        if shard not in self._opened:
            self._opened[shard] = self._open(shard)
        self._opened.move_to_end(shard)
        if len(self._opened) > _OPEN_SHARDS:
            self._opened.popitem(last=False)
        return self._opened[shard]

    def _open(self, shard: int) -> "_Pixels | None":
        index = self._split.index(shard)
        shapes = np.column_stack([index.heights, index.widths]).astype(np.int64)
        name = f"{self._prefix}-{shard:06d}-{_digest(f'{self._split.tar(shard).sha256} {shapes.tolist()}')}"
        opened: _Pixels | None = self._or_refuse(partial(self._mapped, name, shapes))
        return opened

    def _mapped(self, name: str, shapes: np.ndarray) -> "_Pixels | None":
        while True:
            try:
                return _Pixels(self._folder.file(name), shapes)
            except FileNotFoundError:
                if not self._begin(name, int(_starts(shapes)[-1])):
                    return None

    def _begin(self, name: str, size: int) -> bool:
        """Reserve the space for a shard's pixels, unless another process does; whether there is some."""
        with self._folder.half(name) as (out, half):
            if not self._folder.file(name).exists():
                self._folder.refuse_larger(size)
                if not self._folder.set_aside(size, out, keep=lambda file: file.name.startswith(self._prefix)):
                    return False
                half.rename(self._folder.file(name))
        return True

    def _or_refuse(self, do: Callable[[], "_Pixels | None"]) -> "_Pixels | None":
        try:
            return do()
        except OSError as error:
            raise UserError(
                f"cache.decoded_folder = {self._folder.path}: cannot keep decoded images ({error.strerror or error}); "
                "name a folder on a larger local disk, lower cache.decoded_gigabytes, or set cache.decoded = false"
            ) from None


class _Pixels:
    """A shard's pixels, mapped; as long as an image of it is in use, its file is not evicted.

    Attributes:
        sums: what proves each image, uint64 [rows], as all processes see it; 0 = not there.

    Raises:
        FileNotFoundError: if there is none, or one of another length, which is removed.
    """

    def __init__(self, path: Path, shapes: np.ndarray) -> None:
        self._shapes, self._starts = shapes, _starts(shapes)
        self._file = held(path)
        if os.fstat(self._file.fileno()).st_size != self._starts[-1]:
            path.unlink(missing_ok=True)
            raise FileNotFoundError(path)
        os.utime(self._file.fileno())
        self._map = mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)  # it holds the lock as well
        self.sums = np.frombuffer(self._map, "<u8", len(shapes))

    def read(self, row: int) -> np.ndarray | None:
        """An image, if it is there and its sum is right."""
        proof = int(self.sums[row])
        if not proof:
            return None
        height, width = self._shapes[row].tolist()
        start = int(self._starts[row])
        first = start // _PAGE * _PAGE
        self._map.madvise(mmap.MADV_WILLNEED, first, start - first + 3 * height * width)
        flat = np.frombuffer(self._map, np.uint8, 3 * height * width, start)
        return flat.reshape(height, width, 3) if _sum(flat) == proof else None

    def write(self, row: int, image: np.ndarray) -> None:
        """Keep an image: its pixels, then their sum. Never through the map, where a full disk ends the process."""
        flat = image.reshape(-1)
        self._write(flat, int(self._starts[row]))
        self._write(np.array([_sum(flat)], "<u8"), row * _WORD)

    def _write(self, content: np.ndarray, start: int) -> None:
        left = content.data.cast("B")
        while left:
            written = os.pwrite(self._file.fileno(), left, start)
            left, start = left[written:], start + written


def _starts(shapes: np.ndarray) -> np.ndarray:
    """The offset of each image after the table of checksums, and the end, int64 [rows + 1]."""
    sizes = np.concatenate([[_WORD * max(len(shapes), 1)], 3 * shapes[:, 0] * shapes[:, 1]])
    return np.cumsum(-(-sizes // _ALIGNMENT) * _ALIGNMENT)


def _sum(flat: np.ndarray) -> int:
    """The bytes as 64-bit numbers, added up; never 0. One number changed, or a page of zeros, changes it.

    A hundredth of the time of decoding; CRC-32 takes a tenth of it.
    """
    end = len(flat) // _WORD * _WORD
    total = int(np.add.reduce(flat[:end].view("<u8"), dtype=np.uint64)) + int.from_bytes(flat[end:].tobytes(), "little")
    return (total + len(flat)) % 2**64 or 1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
