"""The parts that a manifest lists, as a table: a million of them take some hundred megabytes, and not gigabytes.

A stage's parts lie as Parquet beside its manifest, one row a part; in manifests of version 0.1.0 they are JSON.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.receipts import Receipt, StoredFile, canonical_json
from schemas.tables import PARTS

_BATCH = 4096
_SUM_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class ManifestPart:
    """One part as a manifest lists it."""

    part: str
    rows: int
    files: tuple[StoredFile, ...]


@dataclass(frozen=True)
class Parts:
    """A manifest's parts in its order.

    Attributes:
        table: `schemas.tables.PARTS`.
    """

    table: pa.Table

    @classmethod
    def of(cls, parts: Iterable[Receipt | ManifestPart]) -> "Parts":
        """Those that receipts, or a manifest of version 0.1.0, list."""
        rows = [{"part": one.part, "rows": one.rows, "files": [vars(file) for file in one.files]} for one in parts]
        return cls(pa.Table.from_pylist(rows, schema=PARTS))

    @classmethod
    def from_parquet(cls, data: bytes) -> "Parts":
        """Those of a Parquet file; raises ValueError where it has other columns."""
        try:
            table = pq.read_table(io.BytesIO(data))
            return cls(table.select(PARTS.names).cast(PARTS))
        except (pa.ArrowException, KeyError) as error:
            raise ValueError(f"not a table of parts: {str(error).splitlines()[0]}") from None

    def to_parquet(self) -> bytes:
        """A Parquet file of them."""
        out = io.BytesIO()
        pq.write_table(self.table, out, compression="zstd", row_group_size=1 << 16)
        return out.getvalue()

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[ManifestPart]:
        """One part after the other; raises ValueError where a field is none."""
        for one in self._fields():
            files = tuple(StoredFile(**file) for file in one["files"])
            yield ManifestPart(part=one["part"], rows=one["rows"], files=files)

    @property
    def names(self) -> list[str]:
        """The parts' names."""
        return list(self.table["part"].to_pylist())

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows of each part."""
        seen = dict[int, int]()
        return tuple(seen.setdefault(one, one) for one in self.table["rows"].to_pylist())  # few objects

    def lengths(self) -> dict[str, int]:
        """Path → length in bytes of every file."""
        files = self._files()
        return dict(zip(files.field("path").to_pylist(), files.field("bytes").to_pylist(), strict=True))

    @property
    def bytes(self) -> int:
        """Length in bytes of all files together."""
        return sum(self._files().field("bytes").to_pylist())

    def content(self) -> str:
        """The fingerprint of the parts, by which a split is known: that of their JSON."""
        digest, mark = hashlib.sha256(b"["), b""
        for one in self._fields():
            digest.update(mark + canonical_json(one)[:-1])
            mark = b","
        digest.update(b"]\n")
        return digest.hexdigest()

    def proofs(self) -> "Proofs":
        """What a part's receipt is held against."""
        column = self.table["files"].combine_chunks()
        sums = pa.concat_arrays([column.flatten().field("sha256")])
        return Proofs(
            np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy())]).astype(np.int64),
            np.frombuffer(bytes.fromhex("".join(sums.to_pylist())), np.uint8).reshape(-1, _SUM_BYTES),
        )

    def _files(self) -> pa.StructArray:
        return pa.concat_arrays([chunk.flatten() for chunk in self.table["files"].chunks] or [_NO_FILES])

    def _fields(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=_BATCH):
            yield from batch.to_pylist()


_NO_FILES = pa.array([], PARTS.field("files").type.value_type)


@dataclass(frozen=True)
class Proofs:
    """The sums of all parts' files, 32 bytes each: what is kept of a manifest to hold receipts against.

    Attributes:
        starts: where each part's sums begin, and the end of all, int64 [parts + 1].
        sums: sha256 of each file, uint8 [files, 32].
    """

    starts: np.ndarray
    sums: np.ndarray

    def match(self, part: int, files: Iterable[StoredFile]) -> bool:
        """Whether these are the files of the n-th part."""
        expected = self.sums[self.starts[part] : self.starts[part + 1]].tobytes()
        return b"".join(bytes.fromhex(file.sha256) for file in files) == expected
