"""Which images go into which shard, and in what order."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.config import ShardsConfig
from schemas.errors import UserError
from stages.replay.draws import Draws, Purpose
from stages.sources.listing import Listing

_WITHIN_BLOCKS = 1
"""Address of a shard's own shuffling, where the listing is shuffled by blocks; 0 is the listing's."""


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


def plan_shards(listing: Listing, config: ShardsConfig, *, shuffle: bool) -> list[ShardSpec]:
    """Deal a listing into shards of nearly equal length, shuffled for training so that shards mix classes.

    Adopted tars are the shards. The rows of Parquet are shuffled by row groups, then within a shard.

    Raises:
        UserError: if tars are to be adopted that are no WebDataset shards.
    """
    images = listing.images
    if config.adopt:
        if not listing.samples:
            raise UserError("shards.adopt: the source is not WebDataset tars; unset it, so that they are written")
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
