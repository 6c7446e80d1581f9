"""Images that train and val share: by name as they are listed, by content once both are packed.

Content is an image's length and CRC-32, which every shard's index has: all images are compared, and none is read.
"""

import io
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.manifests import ShardManifest
from stages.storage.commit import read_checked
from stages.storage.manifest import open_manifest
from stages.storage.store import Store

_COLUMNS = ["crc32", "size", "name"]


def warn_of_shared_names(train: pa.Table, val: pa.Table, say: Callable[[str], None]) -> None:
    """Say how many images of two listings, `schemas.tables.LISTING`, are called the same."""
    there = pc.is_in(val["name"], value_set=train["name"])
    if not (count := pc.sum(there).as_py()):
        return
    name = val["name"].filter(there)[0].as_py()
    say(
        f"warning: {count} of val's {len(val)} images are called as images of train are, such as {name}; their bytes "
        "are compared once both splits are packed"
    )


def warn_of_shared_images(train: Store, val: Store, say: Callable[[str], None]) -> None:
    """Say how many images of two sharded splits are the same bytes, and which, for example."""
    ours = pa.concat_tables(_indexes(val))
    keys = _keys(ours)
    seen, example = np.zeros(len(keys), bool), ""
    for table in _indexes(train):
        others = _keys(table)
        found = np.isin(keys, others)
        if found.any() and not example:
            row = int(np.flatnonzero(found)[0])
            twin = int(np.flatnonzero(others == keys[row])[0])
            example = f"{ours['name'][row]} of val is {table['name'][twin]} of train"
        seen |= found
    if example:
        say(f"warning: {int(seen.sum())} of val's {len(keys)} images are in train too, byte for byte: {example}")


def _indexes(store: Store) -> Iterator[pa.Table]:
    """The indexes of a finished split, shard by shard."""
    found = open_manifest(store, ShardManifest)
    for part in found.parts if found else ():
        file = next(file for file in part.files if file.path.endswith(".parquet"))
        yield pq.read_table(io.BytesIO(read_checked(store, file)), columns=_COLUMNS)


def _keys(table: pa.Table) -> np.ndarray:
    """Length and checksum of each image as one number, uint64 [N]."""
    return (table["size"].to_numpy().astype(np.uint64) << np.uint64(32)) | table["crc32"].to_numpy().astype(np.uint64)
