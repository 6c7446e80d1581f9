"""Read what the shard stage stored: a split's images by address.

Every byte is proven before it is used: an index against its receipt, an image against the checksum in the index. So
one flipped bit ends a run with a line, not with a slightly worse student.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from schemas.config import CacheConfig
from schemas.errors import MismatchError, UserError
from schemas.manifests import ShardManifest
from schemas.receipts import Receipt, StoredFile
from stages.shard.plan import shard_name
from stages.storage.commit import MANIFEST, RECEIPTS, read_checked, read_receipt
from stages.storage.manifest import CompleteStage, open_manifest
from stages.storage.shard_cache import ShardCache
from stages.storage.store import Store

_OPEN_TARS = 32


@dataclass(frozen=True)
class Index:
    """A shard's index as arrays over its rows."""

    offsets: np.ndarray
    sizes: np.ndarray
    crc32s: np.ndarray
    classes: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    names: list[str]


class Split:
    """A sharded split: samples by address (shard, row). Picklable; opens its files where it is used.

    Args:
        store: of the split's folder.
        found: its manifest and the parts this lists.
        cache: where shards across a network, and decoded images, are kept.
    """

    def __init__(self, store: Store, found: CompleteStage[ShardManifest], cache: CacheConfig) -> None:
        manifest = found.manifest
        self.store, self.rows, self.cache = store, found.parts.rows, cache
        self.classes, self.content, self._made_by = manifest.classes, manifest.content, manifest.made_by
        self._proofs = found.parts.proofs()
        self._adopted = manifest.adopted
        self._tars_lie = Store(manifest.adopted.root) if manifest.adopted else store
        self._cache = None if self._tars_lie.local else ShardCache(self._tars_lie, cache)
        self._caches()

    @classmethod
    def open(cls, workspace: str, name: str, cache: CacheConfig | None = None) -> "Split":
        """Open a split that is complete.

        Raises:
            UserError: if it is not, or its manifest is damaged.
            MismatchError: if its manifest is of something else than its plan.
        """
        store = Store(workspace).child(f"shards/{name}")
        found = open_manifest(store, ShardManifest)
        if found is None:
            raise UserError(f"{store}: split {name} is not sharded yet; run `deit-pipeline shard`")
        if any(name != shard_name(shard) for shard, name in enumerate(found.parts.names)):
            raise UserError(f"{store.display_path(MANIFEST)}: is damaged (its shards have gaps); {ShardManifest.FIX}")
        return cls(store, found, cache or CacheConfig())

    def __len__(self) -> int:
        return sum(self.rows)

    @property
    def pairs(self) -> int:
        """Pairs that are mixed in a pass."""
        return sum(rows // 2 for rows in self.rows)

    def address(self, image: int) -> tuple[int, int]:
        """Shard and row of an image, which is numbered from 0 over the split."""
        ends = np.cumsum(self.rows)
        shard = int(np.searchsorted(ends, image, side="right"))
        return shard, image - int(ends[shard]) + self.rows[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_receipt", "index", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._caches()

    def image(self, shard: int, row: int) -> bytes:
        """A sample's image file.

        Raises:
            UserError: if its bytes are not those that were sharded.
        """
        index = self.index(shard)
        offset, size, proof = int(index.offsets[row]), int(index.sizes[row]), int(index.crc32s[row])
        data = self._read(shard, size, offset)
        if zlib.crc32(data) != proof and self._cache is not None:
            self._cache.forget(self.tar(shard))  # a copy was proved when it was made, and has been damaged since
            data = self._read(shard, size, offset)
        if zlib.crc32(data) != proof:
            name = self._tar_name(shard)
            raise UserError(f"{name}: image {index.names[row]} (row {row}) has other bytes; {self._fix(shard)}")
        return data

    def _read(self, shard: int, size: int, offset: int) -> bytes:
        if self._cache is not None:
            return self._cache.read(self.tar(shard), size, offset)
        return bytes(self._opened(shard).read_at(size, offset))

    def expect(self, now: Sequence[int], after: Sequence[int]) -> None:
        """Say which shards are read now and which after them; copies are made ahead where they are across a network.

        Raises:
            UserError: if the cache cannot hold those that are read now.
        """
        if self._cache is not None:
            self._cache.expect(*([self.tar(shard) for shard in shards] for shards in (now, after)))

    def tar(self, shard: int) -> StoredFile:
        """A shard's tar, below the folder of the split's tars."""
        return self._adopted.tars[shard] if self._adopted else self._receipt(shard).file(".tar")

    def _read_receipt(self, shard: int) -> Receipt:
        """A shard's receipt, held against the manifest."""
        path = self._receipt_path(shard)
        try:
            receipt = read_receipt(self.store, shard_name(shard))
        except FileNotFoundError:
            raise UserError(f"{path}: is missing; run `deit-pipeline shard` again") from None
        if receipt.made_by != self._made_by:
            raise MismatchError(f"{path}: is of another split (made_by); delete it and rerun `deit-pipeline shard`")
        if receipt.rows != self.rows[shard] or not self._proofs.match(shard, receipt.files):
            raise UserError(
                f"{path}: has other rows or files than the manifest lists; delete it and rerun `deit-pipeline shard`"
            )
        return receipt

    def _receipt_path(self, shard: int) -> str:
        return self.store.display_path(f"{RECEIPTS}/{shard_name(shard)}.json")

    def _fix(self, shard: int) -> str:
        """What to do about a shard whose bytes are wrong."""
        if self._adopted:
            return "restore that file, which the split uses where it lies"
        return f"delete {self._receipt_path(shard)} and rerun `deit-pipeline shard`"

    def _caches(self) -> None:
        self._receipt: Callable[[int], Receipt] = lru_cache(256)(self._read_receipt)
        self.index: Callable[[int], Index] = lru_cache(256)(self._read_index)
        self._opened: Callable[[int], Any] = lru_cache(_OPEN_TARS)(self._open_tar)

    def _open_tar(self, shard: int) -> Any:
        try:
            return self._tars_lie.open(self.tar(shard).path)
        except FileNotFoundError:
            raise UserError(f"{self._tar_name(shard)}: is missing; {self._fix(shard)}") from None

    def _tar_name(self, shard: int) -> str:
        return self._tars_lie.display_path(self.tar(shard).path)

    def _read_index(self, shard: int) -> Index:
        table = pq.read_table(
            io.BytesIO(read_checked(self.store, self._receipt(shard).file(".parquet"), fix=self._fix(shard)))
        )
        column = {name: table[name] for name in table.column_names}
        return Index(
            offsets=column["offset"].to_numpy(),
            sizes=column["size"].to_numpy(),
            crc32s=column["crc32"].to_numpy(),
            classes=column["class"].to_numpy(),
            heights=column["height"].to_numpy(),
            widths=column["width"].to_numpy(),
            names=column["name"].to_pylist(),
        )
