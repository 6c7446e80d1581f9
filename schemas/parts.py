"""The parts that a manifest lists, as a table: a million of them take some hundred megabytes, and not gigabytes.

A stage's parts are Parquet beside its manifest, one row a part; in manifests of version 0.1.0 they are JSON.
"""

import builtins
import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.receipts import Receipt, StoredFile, canonical_json
from schemas.tables import PARTS

_BATCH, _ROW_GROUP = 4096, 1 << 16
_SUM_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class ManifestPart:
    """One part as a manifest lists it."""

    part: str
    rows: int
    files: tuple[StoredFile, ...]


@dataclass(frozen=True)
class Parts:
    """A manifest's parts in its order, walked through batch by batch.

    Attributes:
        data: the Parquet file of them, `schemas.tables.PARTS`.
    """

    data: bytes

    @classmethod
    def of(cls, parts: Iterable[Receipt | ManifestPart]) -> "Parts":
        """Those that receipts, or a manifest of version 0.1.0, list."""
        rows = [{"part": one.part, "rows": one.rows, "files": [vars(file) for file in one.files]} for one in parts]
        return cls.of_table(pa.Table.from_pylist(rows, schema=PARTS))

    @classmethod
    def of_table(cls, table: pa.Table) -> "Parts":
        """Those of a table, `schemas.tables.PARTS`."""
        out = io.BytesIO()
        pq.write_table(table, out, compression="zstd", row_group_size=_ROW_GROUP)
        return cls(out.getvalue())

    def __len__(self) -> int:
        return int(self._file().metadata.num_rows)

    def __iter__(self) -> Iterator[ManifestPart]:
        """One part after the other; raises ValueError where a field is none."""
        for one in self._fields():
            files = tuple(StoredFile(**file) for file in one["files"])
            yield ManifestPart(part=one["part"], rows=one["rows"], files=files)

    @property
    def names(self) -> Iterator[str]:
        """The parts' names."""
        for batch in self._batches(["part"]):
            yield from batch.column("part").to_pylist()

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows of each part."""
        seen = dict[int, int]()  # few objects
        return tuple(
            seen.setdefault(one, one) for batch in self._batches(["rows"]) for one in batch.column("rows").to_pylist()
        )

    def lengths(self) -> dict[str, int]:
        """Path → length in bytes of every file."""
        return {file["path"]: file["bytes"] for one in self._fields() for file in one["files"]}

    @property
    def bytes(self) -> int:
        """Length in bytes of all files together."""
        return sum(self.lengths().values())

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
        counts, sums = [np.zeros(1, np.int64)], bytearray()
        for batch in self._batches(["files"]):
            files = batch.column("files")
            counts.append(files.value_lengths().to_numpy().astype(np.int64))
            sums += builtins.bytes.fromhex("".join(files.flatten().field("sha256").to_pylist()))
        return Proofs(np.cumsum(np.concatenate(counts)), np.frombuffer(sums, np.uint8).reshape(-1, _SUM_BYTES))

    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(self.data))

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        return cast(Iterator[pa.RecordBatch], self._file().iter_batches(_BATCH, columns=columns, use_threads=False))

    def _fields(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches(PARTS.names):
            yield from batch.to_pylist()


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
