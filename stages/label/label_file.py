"""A label part's file: written so that it takes few bytes, read as arrays.

Rows are sorted by row, then view: a sample's views mostly get one class, so that neighbours are alike. Values are
stored plain and left to Brotli, which finds more in them than zstd does, in less special ways: a dictionary's indices
are packed across bytes, which hides their repetition. Any reader of Parquet reads it. Rejected: packing k classes and
logits into one binary column, which only this project could read.

Legend: N decisions of a part, k kept classes, K classes.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.tables import LABELS

_LEVELS = {"hard": 11, "topk": 11, "full": 4, "compact": 11, "sampled": 11}
"""Brotli's effort: its best, except where it would take longer than a teacher."""
Signatures = dict[tuple[int, int], bytes]


def write_labels(path: Path, store: str, shard: int, columns: dict[str, np.ndarray], signatures: Signatures) -> None:
    """Write a part.

    Args:
        path: of the file.
        store: a value of `labels.store`; names the schema.
        shard: of the part.
        columns: by name; N rows each, in any order; lists are [N, k] or [N, K].
        signatures: (row, view) -> bytes.
    """
    schema = LABELS[store]
    order = np.lexsort((columns["view"], columns["row"]))
    columns = {name: values[order] for name, values in columns.items()} | {"shard": np.full(len(order), shard)}
    addresses = zip(columns["row"].tolist(), columns["view"].tolist(), strict=True)
    arrays = {name: _array(values, schema.field(name).type) for name, values in columns.items()}
    arrays["signature"] = pa.array([signatures.get(address) for address in addresses], pa.binary())
    table = pa.table({name: arrays[name] for name in schema.names}, schema=schema)
    pq.write_table(
        table,
        path,
        compression="brotli",
        compression_level=_LEVELS[store],
        use_dictionary=False,
        write_statistics=["row", "view"],
        store_schema=False,
    )


def read_labels(data: bytes) -> tuple[dict[str, np.ndarray], Signatures]:
    """A part's columns, lists as [N, k] or [N, K], and its signatures by (row, view)."""
    table = pq.read_table(io.BytesIO(data))
    columns = {name: _numbers(table[name].combine_chunks()) for name in table.column_names if name != "signature"}
    signed = table.filter(table["signature"].is_valid()).select(["row", "view", "signature"]).to_pylist()
    return columns, {(one["row"], one["view"]): one["signature"] for one in signed}


def _array(values: np.ndarray, type_: pa.DataType) -> pa.Array:
    if not pa.types.is_list(type_):
        return pa.array(values, type_)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), type_.value_type), type=type_)


def _numbers(array: pa.Array) -> np.ndarray:
    if not pa.types.is_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1) if len(array) else np.empty((0, 0))
