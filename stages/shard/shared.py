"""Images that train and val share: by name as they are listed, by content once both are packed.

Lengths and CRC-32s, which every shard's index has, name the candidates; their bytes are read and compared. The checksum
alone does not do: those inside a PNG leave about 16 bits to that of the whole file.
"""

import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.manifests import ShardManifest
from stages.storage.commit import read_checked
from stages.storage.manifest import open_manifest
from stages.storage.store import Store


class Packed(NamedTuple):
    """A sharded split: its folder, and what reads the image at (shard, row)."""

    store: Store
    image: Callable[[int, int], bytes]


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


def warn_of_shared_images(train: Packed, val: Packed, say: Callable[[str], None]) -> None:
    """Say how many images of two sharded splits are the same bytes, and which, for example."""
    tables = list(_indexes(val.store))
    ours = pa.concat_tables(tables)
    addresses = [(shard, row) for shard, table in enumerate(tables) for row in range(len(table))]
    keys = _keys(ours)
    seen, example = np.zeros(len(keys), bool), ""
    for shard, table in enumerate(_indexes(train.store)):
        others = _keys(table)
        for row in np.flatnonzero(np.isin(keys, others) & ~seen):
            data = val.image(*addresses[row])
            twins = (int(one) for one in np.flatnonzero(others == keys[row]))
            twin = next((one for one in twins if train.image(shard, one) == data), None)
            if twin is not None:
                seen[row] = True
                example = example or f"{ours['name'][row]} of val is {table['name'][twin]} of train"
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
