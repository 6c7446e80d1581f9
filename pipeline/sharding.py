"""Sharding as a command runs it: what a split is made from, its parts, and what others read beside them.

Nothing here or below loads torch: over a million images are listed within a gigabyte, and torch alone takes half of it.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.progress import Progress
from pipeline.ray_pool import make_missing
from pipeline.session import INLINE, LOCAL, Seats
from pipeline.work import Job, begin, finish
from schemas.config import RunFile
from schemas.errors import BadImages, Mismatch, PipelineError
from schemas.receipts import Receipt, StoredFile
from schemas.tables import SKIPPED
from stages.shard import ShardMaker, packing_versions, plan_shards
from stages.sources.find import list_sources
from stages.sources.listing import Listing
from stages.store import Store, put_json, put_table

Say = Callable[[str], None]


def shard(run: RunFile, say: Say) -> dict[str, Any]:
    """Pack the run file's splits.

    Raises:
        PipelineError: if a source is missing, or holds what cannot be packed.
        Mismatch: if the splits there were made from something else.
    """
    result = {}
    for split, listing in list_sources(run.source).items():
        if listing.refused and run.shards.on_bad_image == "fail":
            raise BadImages(listing.refused)
        result[split] = _shard_split(run, split, listing, say)
    return {"stage": "shard", "splits": result}


def _shard_split(run: RunFile, split: str, listing: Listing, say: Say) -> dict[str, Any]:
    store = Store(run.workspace).at(f"shards/{split}")
    settings = run.shards.model_dump(mode="json", exclude={"on_bad_image"})  # whole shards are the same
    made_from = {"images": listing.fingerprint(), "classes": list(listing.classes), "shards": settings}
    specs = plan_shards(listing, run.shards, shuffle=split == "train")
    mend = "restore the images and the run file, or delete that folder"
    made_by = begin(store, made_from, packing_versions(), mend, wanted=len(specs))
    job = Job(store, made_by, partial(ShardMaker, listing.source, run.shards))
    here = run.cluster.address in (INLINE, LOCAL)
    seats = Seats(count=run.cluster.cpus or (os.cpu_count() or 1 if here else 0), cpus=1)
    with Progress(f"shard {split}", total=len(specs), unit="parts", rate_unit="images") as progress:
        receipts, new = make_missing(job, specs, cluster=run.cluster, seats=seats, progress=progress)
    skipped = [*listing.refused, *_skipped(store, receipts, run.shards.on_bad_image)]
    samples = sum(receipt.rows for receipt in receipts)
    more: dict[str, Any] = {
        "stage": "shard",
        "classes": list(listing.classes),
        "found": len(listing.images) + len(listing.refused),
        "samples": samples,
        "skipped": skipped,
        "other_files": listing.other_files,
    }
    if run.shards.adopt:
        more["adopted"] = {"root": Store(listing.source.root).portable, "tars": [one.facts["tar"] for one in receipts]}
    else:
        put_json(store, "_info.json", _timm_info(split, receipts))
        put_json(store, "wids.json", _wids_index(split, receipts))
    if skipped:
        put_table(store, "skipped.parquet", pa.Table.from_pylist(skipped, schema=SKIPPED))
    finish(store, made_from, receipts, **more)
    say(f"{split}: {samples} images in {len(receipts)} shards, {len(skipped)} skipped → {store}")
    if listing.other_files:
        say(f"{split}: {listing.other_files} files of {listing.source.root} are no images and were left out")
    return _sizes(receipts, new) | {"samples": samples, "skipped": len(skipped)}


def _skipped(store: Store, receipts: Sequence[Receipt], on_bad_image: str) -> list[dict[str, str]]:
    """The images that were left out; refused where that is not wanted, or where nothing is left."""
    skipped = [one for receipt in receipts for one in receipt.facts["skipped"]]
    if skipped and on_bad_image == "fail":
        raise Mismatch(
            f"{store} was made without {len(skipped)} unreadable images, of which {skipped[0]['name']} is the first; "
            'set shards.on_bad_image = "skip", or delete that folder'
        )
    if not any(receipt.rows for receipt in receipts):
        raise PipelineError(f"{store}: none of its {len(skipped)} images can be read; mend them and delete that folder")
    return skipped


def _sizes(receipts: Sequence[Receipt], new: int) -> dict[str, int]:
    return {
        "parts": len(receipts),
        "new_parts": new,
        "bytes": sum(file.bytes for receipt in receipts for file in receipt.files),
    }


def _tars(receipts: Sequence[Receipt]) -> list[StoredFile]:
    return [next(file for file in receipt.files if file.path.endswith(".tar")) for receipt in receipts]


def _timm_info(split: str, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """What timm's reader of WebDataset shards asks for."""
    lengths = [receipt.rows for receipt in receipts]
    names = [tar.path for tar in _tars(receipts)]
    return {
        "splits": {split: {"name": split, "num_samples": sum(lengths), "filenames": names, "shard_lengths": lengths}}
    }


def _wids_index(split: str, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """The index of shards by which wids reads samples at random; it finds them beside the index."""
    shards = [
        {"url": tar.path, "nsamples": receipt.rows, "filesize": tar.bytes}
        for tar, receipt in zip(_tars(receipts), receipts, strict=True)
    ]
    return {"wids_version": 1, "name": split, "shardlist": shards}
