"""Sharding as a command runs it: what a split is made from, its parts, and what others read beside them.

Nothing here or below loads torch: over a million images are listed within a gigabyte, and torch alone takes half of it.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.commands.reports import put_report
from pipeline.commands.source_notes import note_source
from pipeline.execution.progress import Progress, note
from pipeline.execution.ray_session import INLINE, LOCAL, Resources
from pipeline.execution.run_parts import make_missing
from pipeline.execution.stage_dir import StageDir, completed_manifest, open_stage, write_manifest
from pipeline.execution.worker import Job
from schemas.config import RunFile, ShardsConfig
from schemas.errors import BadImages, MismatchError, UserError
from schemas.receipts import Receipt, StoredFile
from schemas.secrets import hide_secrets
from schemas.tables import SKIPPED
from stages.shard.plan import plan_shards
from stages.shard.shared import warn_of_shared_images, warn_of_shared_names
from stages.shard.writer import ShardMaker, packing_versions
from stages.sources.discover import list_sources
from stages.sources.listing import Listing
from stages.storage.commit import put_json, put_table, read_manifest
from stages.storage.store import Store

Say = Callable[[str], None]
_COMPANION_FILES = ("_info.json", "wids.json")
"""What timm and wids read beside shards."""
_LISTED = "listed.json"
_MEND = "restore the images and the run file, or delete that folder"


def shard(run: RunFile, say: Say) -> dict[str, Any]:
    """Pack the run file's splits; one that is whole, and whose images are those of the source, is left as it is.

    Raises:
        UserError: if a source is missing, or holds what cannot be packed.
        MismatchError: if the splits there were made from something else.
    """
    result = {}
    listings = list_sources(run.source)
    for split, listing in listings.items():
        given = (
            f"source.classes = {run.source.classes}" if split == "train" or run.source.classes else "the train split"
        )
        note_source(f"source.{split} = {getattr(run.source, split)}", listing, given)
    if "val" in listings:
        warn_of_shared_names(listings["train"].images, listings["val"].images, note)
    for split, listing in listings.items():
        if listing.refused and run.shards.on_bad_image == "fail":
            raise BadImages(listing.refused)
        store = _store(run, split)
        settings = _settings(run.shards)
        made_from = {"images": listing.fingerprint(), "classes": list(listing.classes), "shards": settings}
        begun = open_stage(store, made_from, packing_versions(), _MEND)
        manifest, new = completed_manifest(begun, beside=_COMPANION_FILES if not run.shards.adopt else ()), 0
        if manifest is None:
            manifest, new = _pack(run, split, listing, begun)
        result[split] = _result(run, split, manifest, new, say)
    root, listed = Store(run.workspace).at("shards"), _listed(run)
    finished = read_manifest(root, _LISTED) == listed
    if "val" in listings and not (finished and all(split["new_parts"] == 0 for split in result.values())):
        warn_of_shared_images(_store(run, "train"), _store(run, "val"), note)
    if not finished:
        put_report(root, _LISTED, listed)
    return {"stage": "shard", "splits": result}


def sharded(run: RunFile, say: Say) -> dict[str, Any] | None:
    """What `shard` returns where it has finished with this run file, without listing the source again; else None.

    Raises:
        MismatchError: if images were left out that the run file wants no more to be.
    """
    if read_manifest(Store(run.workspace).at("shards"), _LISTED) != _listed(run):
        return None
    result = {}
    for split in ("train", "val") if run.source.val else ("train",):
        store = _store(run, split)
        made_from = (read_manifest(store) or {}).get("made_from", {})
        manifest = completed_manifest(
            StageDir(store, made_from, {}, ""), beside=_COMPANION_FILES if not run.shards.adopt else ()
        )
        if manifest is None or made_from["shards"] != _settings(run.shards):
            return None
        result[split] = _result(run, split, manifest, 0, say)
    say("the source was not listed again; `deit-pipeline shard` does that")
    return {"stage": "shard", "splits": result}


def _store(run: RunFile, split: str) -> Store:
    return Store(run.workspace).at(f"shards/{split}")


def _settings(shards: ShardsConfig) -> dict[str, Any]:
    return shards.model_dump(mode="json", exclude={"on_bad_image"})  # whole shards are the same


def _listed(run: RunFile) -> dict[str, Any]:
    """The source that a finished command listed, as the run file names it."""
    named = run.source.model_dump(mode="json")
    paths = {key: named[key] for key in ("train", "val", "val_labels")}
    paths = {key: os.path.abspath(path) for key, path in paths.items() if path and "://" not in path}
    return {"source": {key: hide_secrets(str(value)) for key, value in (named | paths).items()}}


def _pack(run: RunFile, split: str, listing: Listing, begun: StageDir) -> tuple[dict[str, Any], int]:
    """Make the shards that are missing, and what others read beside them; the manifest, and how many are new."""
    store, specs = begun.store, plan_shards(listing, run.shards, shuffle=split == "train")
    job = Job(begun, partial(ShardMaker, listing.source, run.shards))
    here = run.cluster.address in (INLINE, LOCAL)
    seats = Resources(count=run.cluster.cpus or (os.cpu_count() or 1 if here else 0), cpus=1)
    with Progress(f"shard {split}", total=len(specs), unit="parts", rate_unit="images") as progress:
        receipts, new = make_missing(job, specs, cluster=run.cluster, seats=seats, progress=progress)
    skipped = [*listing.refused, *(one for receipt in receipts for one in receipt.facts["skipped"])]
    if not any(receipt.rows for receipt in receipts):
        raise UserError(f"{store}: none of its {len(skipped)} images can be read; mend them and delete that folder")
    more: dict[str, Any] = {
        "stage": "shard",
        "classes": list(listing.classes),
        "found": len(listing.images) + len(listing.refused) + listing.other_files,
        "samples": sum(receipt.rows for receipt in receipts),
        "skipped": skipped,
        "other_files": listing.other_files,
    }
    if listing.left_out:
        more["left_out"] = list(listing.left_out)
    if run.shards.adopt:
        more["adopted"] = {"root": Store(listing.source.root).portable, "tars": [one.facts["tar"] for one in receipts]}
    else:
        for name, about in zip(
            _COMPANION_FILES, (_timm_info(split, receipts), _wids_index(split, receipts)), strict=True
        ):
            put_json(store, name, about)
    if skipped:
        put_table(store, "skipped.parquet", pa.Table.from_pylist(skipped, schema=SKIPPED))
    return write_manifest(begun, receipts, **more), new


def _result(run: RunFile, split: str, manifest: dict[str, Any], new: int, say: Say) -> dict[str, Any]:
    """What there is to say of a whole split; refused where images were left out and that is not wanted."""
    store, skipped, parts = _store(run, split), manifest["skipped"], manifest["parts"]
    if skipped and run.shards.on_bad_image == "fail":
        raise MismatchError(
            f"{store} was made without {len(skipped)} unreadable images, of which {skipped[0]['name']} is the first; "
            'set shards.on_bad_image = "skip", or delete that folder'
        )
    say(f"{split}: {manifest['samples']} images in {len(parts)} shards, {len(skipped)} skipped → {store}")
    if never := _never_paired(parts):
        say(f"{split}: {never}")
    return {
        "parts": len(parts),
        "new_parts": new,
        "bytes": sum(file["bytes"] for part in parts for file in part["files"]),
        "samples": manifest["samples"],
        "skipped": len(skipped),
    }


def _never_paired(parts: Sequence[dict[str, Any]]) -> str:
    """How many images have no partner to be mixed with, in words, or ""."""
    alone, odd = sum(part["rows"] == 1 for part in parts), sum(part["rows"] % 2 for part in parts)
    said = [f"{alone} images are alone in their shard and never labelled or trained on"] if alone else []
    said += (
        [f"{odd - alone} shards have an odd number of images, one of which sits out each pass"] if odd > alone else []
    )
    return "; ".join(said)


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
