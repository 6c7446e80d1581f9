"""Sharding as a command runs it: what a split is made from, its parts, and what others read beside them.

Nothing here or below loads torch: over a million images are listed within a gigabyte, and torch alone takes 50% of it.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
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
from schemas.manifests import Adopted, ShardManifest
from schemas.receipts import Receipt, StoredFile, canonical_json
from schemas.secrets import hide_secrets
from schemas.tables import SKIPPED
from stages.data.split import Split
from stages.shard.plan import plan_shards
from stages.shard.shared import Packed, warn_of_shared_images, warn_of_shared_names
from stages.shard.writer import ShardMaker, packing_versions
from stages.sources.discover import list_sources
from stages.sources.listing import Listing
from stages.storage.commit import put_json, put_table
from stages.storage.manifest import CompleteStage, read_manifest
from stages.storage.store import Store

Say = Callable[[str], None]
_COMPANION_FILES = ("_info.json", "wids.json")
"""What timm and wids read beside shards."""
_LISTED = "listed.json"
_HINT = "restore the images and the run file, or delete that folder"


def shard(config: RunFile, say: Say) -> dict[str, Any]:
    """Pack the run file's splits; a complete one, whose images are those of the source, is left unchanged.

    Raises:
        UserError: if a source is missing, or holds what cannot be packed.
        MismatchError: if the splits there were made from something else.
    """
    result, listings = {}, listed_splits(config)
    for split, listing in listings.items():
        if listing.refused and config.shards.on_bad_image == "fail":
            raise BadImages(listing.refused)
        stage_dir = open_stage(_store(config, split), *split_identity(config, listing))
        beside = _COMPANION_FILES if not config.shards.adopt else ()
        found, new = completed_manifest(stage_dir, ShardManifest, beside=beside), 0
        if found is None:
            found, new = _pack(config, split, listing, stage_dir)
        result[split] = _result(config, split, found, new, say)
    finished = _is_listed(config)
    if "val" in listings and not (finished and all(split["new_parts"] == 0 for split in result.values())):
        warn_of_shared_images(_packed(config, "train"), _packed(config, "val"), note)
    if not finished:
        put_report(Store(config.workspace).child("shards"), _LISTED, _listed(config))
    return {"stage": "shard", "splits": result}


def listed_splits(config: RunFile) -> dict[str, Listing]:
    """The splits of the source by name; what each was found to be is said on stderr.

    Raises:
        UserError: if a source is missing, or holds what cannot be packed.
    """
    listings = list_sources(config.source)
    for split, listing in listings.items():
        given = (
            f"source.classes = {config.source.classes}"
            if split == "train" or config.source.classes
            else "the train split"
        )
        note_source(f"source.{split} = {getattr(config.source, split)}", listing, given)
    if "val" in listings:
        warn_of_shared_names(listings["train"].images, listings["val"].images, note)
    return listings


def split_identity(config: RunFile, listing: Listing) -> tuple[dict[str, Any], dict[str, str], str]:
    """What a split is made from, versions of the libraries, and what to do where its folder is of something else."""
    settings = _settings(config.shards)
    made_from = {"images": listing.fingerprint(), "classes": list(listing.classes), "shards": settings}
    return made_from, packing_versions(), _HINT


def sharded(config: RunFile, say: Say) -> dict[str, Any] | None:
    """What `shard` returns where it has finished with this run file, without listing the source again; else None.

    Raises:
        MismatchError: if images were left out that the run file wants no more to be.
    """
    if not _is_listed(config):
        return None
    result = {}
    for split in ("train", "val") if config.source.val else ("train",):
        store = _store(config, split)
        manifest = read_manifest(store, ShardManifest)
        if manifest is None or manifest.made_from.get("shards") != _settings(config.shards):
            return None
        beside = _COMPANION_FILES if not config.shards.adopt else ()
        found = completed_manifest(StageDir(store, manifest.made_from, {}, ""), ShardManifest, beside=beside)
        if found is None:
            return None
        result[split] = _result(config, split, found, 0, say)
    say("the source was not listed again; `deit-pipeline shard` does that")
    return {"stage": "shard", "splits": result}


def _packed(config: RunFile, split: str) -> Packed:
    return Packed(_store(config, split), Split.open(config.workspace, split, config.cache).image)


def _store(config: RunFile, split: str) -> Store:
    return Store(config.workspace).child(f"shards/{split}")


def _settings(shards: ShardsConfig) -> dict[str, Any]:
    return shards.model_dump(mode="json", exclude={"on_bad_image"})  # complete shards are the same


def _listed(config: RunFile) -> dict[str, Any]:
    """The source that a finished command listed, as the run file names it."""
    named = config.source.model_dump(mode="json")
    paths = {key: named[key] for key in ("train", "val", "val_labels")}
    paths = {key: os.path.abspath(path) for key, path in paths.items() if path and "://" not in path}
    return {"source": {key: hide_secrets(str(value)) for key, value in (named | paths).items()}}


def _is_listed(config: RunFile) -> bool:
    """Whether a finished command has listed this source; a damaged record is as good as none."""
    with suppress(FileNotFoundError):
        return Store(config.workspace).child("shards").read(_LISTED) == canonical_json(_listed(config))
    return False


def _pack(
    config: RunFile, split: str, listing: Listing, stage_dir: StageDir
) -> tuple[CompleteStage[ShardManifest], int]:
    """Make the shards that are missing, and what others read beside them; the manifest, and how many are new."""
    store, specs = stage_dir.store, plan_shards(listing, config.shards, shuffle=split == "train")
    job = Job(stage_dir, partial(ShardMaker, listing.source, config.shards))
    here = config.cluster.address in (INLINE, LOCAL)
    resources = Resources(count=config.cluster.cpus or (os.cpu_count() or 1 if here else 0), cpus=1)
    with Progress(f"shard {split}", total=len(specs), unit="parts", rate_unit="images") as progress:
        receipts, new = make_missing(job, specs, cluster=config.cluster, resources=resources, progress=progress)
    skipped = [*listing.refused, *(one for receipt in receipts for one in receipt.facts["skipped"])]
    if not any(receipt.rows for receipt in receipts):
        raise UserError(f"{store}: none of its {len(skipped)} images can be read; fix them and delete that folder")
    more: dict[str, Any] = {
        "stage": "shard",
        "classes": tuple(listing.classes),
        "found": len(listing.images) + len(listing.refused) + listing.other_files,
        "samples": sum(receipt.rows for receipt in receipts),
        "skipped": tuple(skipped),
        "other_files": listing.other_files,
    }
    if listing.left_out:
        more["left_out"] = tuple(listing.left_out)
    if config.shards.adopt:
        tars = tuple(StoredFile(**one.facts["tar"]) for one in receipts)
        more["adopted"] = Adopted(root=Store(listing.source.root).portable, tars=tars)
    else:
        for name, about in zip(
            _COMPANION_FILES, (_timm_info(split, receipts), _wids_index(split, receipts)), strict=True
        ):
            put_json(store, name, about)
    if skipped:
        put_table(store, "skipped.parquet", pa.Table.from_pylist(skipped, schema=SKIPPED))
    return write_manifest(stage_dir, ShardManifest, receipts, **more), new


def _result(config: RunFile, split: str, found: CompleteStage[ShardManifest], new: int, say: Say) -> dict[str, Any]:
    """The summary of a complete split; refused where images were skipped and `on_bad_image` forbids it."""
    store, skipped, parts = _store(config, split), found.manifest.skipped, found.parts
    refuse_skipped(config, store, found.manifest)
    say(f"{split}: {found.manifest.samples} images in {len(parts)} shards, {len(skipped)} skipped → {store}")
    if never := _never_paired(parts.rows):
        say(f"{split}: {never}")
    return {
        "parts": len(parts),
        "new_parts": new,
        "bytes": parts.bytes,
        "samples": found.manifest.samples,
        "skipped": len(skipped),
    }


def refuse_skipped(config: RunFile, store: Store, manifest: ShardManifest) -> None:
    """Check that a complete split lacks no image that the run file wants.

    Raises:
        MismatchError: if images were skipped and `on_bad_image` forbids it.
    """
    if (skipped := manifest.skipped) and config.shards.on_bad_image == "fail":
        raise MismatchError(
            f"{store} was made without {len(skipped)} unreadable images, of which {skipped[0]['name']} is the first; "
            'set shards.on_bad_image = "skip", or delete that folder'
        )


def _never_paired(shards: Sequence[int]) -> str:
    """How many images have no partner to be mixed with, in words, or ""."""
    alone, odd = sum(rows == 1 for rows in shards), sum(rows % 2 for rows in shards)
    said = [f"{alone} images are alone in their shard and never labelled or trained on"] if alone else []
    said += (
        [f"{odd - alone} shards have an odd number of images, one of which sits out each pass"] if odd > alone else []
    )
    return "; ".join(said)


def _tars(receipts: Sequence[Receipt]) -> list[StoredFile]:
    return [next(file for file in receipt.files if file.path.endswith(".tar")) for receipt in receipts]


def _timm_info(split: str, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """The file that timm's reader of WebDataset shards needs."""
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
