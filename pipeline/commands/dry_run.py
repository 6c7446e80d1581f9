"""A stage's `--dry-run`: what its command would do, on what, how long, how many bytes; nothing is written.

Every check that needs no device is the command's own, so what it would refuse is refused here with the same line and
exit code. In `run`, a stage whose inputs are not there yet is checked as far as the listed source allows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.commands.dry_work import Work, line_of, refuse_full_disk, work_of
from pipeline.commands.evaluate import all_that_made, predictions_folder, wanted_models
from pipeline.commands.label import label_identity, label_specs, teacher_identity, teacher_line
from pipeline.commands.shard import listed_splits, refuse_skipped, split_identity
from pipeline.commands.source_notes import noted
from pipeline.commands.train import student_line, validating
from pipeline.execution.devices import compiled, device_count, run_device, settled
from pipeline.execution.ray_session import INLINE, LOCAL, ray_session
from pipeline.execution.stage_dir import StageDir, look_at_stage
from schemas.config import RunFile
from schemas.errors import BadImages, UserError
from schemas.manifests import LabelManifest, ShardManifest
from stages.data.image_set import open_image_set
from stages.data.split import Split
from stages.data.views import pixel_versions
from stages.estimate.sizes import label_bytes, model_bytes
from stages.evaluate.evaluated_model import open_evaluated_model
from stages.evaluate.imagenet_real import refuse_other_classes
from stages.evaluate.predictions import BlockSpec
from stages.models.student import new_student
from stages.shard.plan import plan_shards
from stages.sources.listing import Listing
from stages.storage.commit import receipt_names, valid_receipts
from stages.storage.manifest import read_manifest
from stages.storage.run_files import run_store
from stages.storage.store import Store
from stages.train.plan import TAUGHT, plan_training, planned_steps, refuse_few_views

Say = Callable[[str], None]
_PREDICTION_BYTES = 40
"""Of an image, with its name."""


@dataclass(frozen=True)
class ListedSplit:
    """A split that will be sharded: rows of its shards, and classes by index."""

    rows: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def pairs(self) -> int:
        """Pairs that are mixed in a pass."""
        return sum(rows // 2 for rows in self.rows)

    def __len__(self) -> int:
        """Images."""
        return sum(self.rows)


def dry_run(stage: str, config: RunFile, say: Say) -> dict[str, Any]:
    """What a stage's command would do.

    Args:
        stage: shard, label, train, evaluate, or everything for `run`.
        config: the run file.
        say: takes lines for the user.

    Raises:
        UserError: as the command would raise it, or the disk has no space for what it would write.
        MismatchError: as the command would raise it.
    """
    works = _everything(config, say) if stage == "everything" else _STAGES[stage](config, say)
    for work in works:
        say(line_of(work))
    refuse_full_disk(config.workspace, sum(work.bytes or 0 for work in works))
    say("nothing was written")
    name = {"label": "label-teacher", "everything": "run"}.get(stage, stage)
    return {"stage": name, "dry_run": True, "work": [one.to_json() for one in works]}


def _shard(config: RunFile, say: Say) -> list[Work]:
    return _shard_works(config, listed_splits(config))


def _shard_works(config: RunFile, listings: dict[str, Listing]) -> list[Work]:
    works = []
    for split, listing in listings.items():
        if listing.refused and config.shards.on_bad_image == "fail":
            raise BadImages(listing.refused)
        store = Store(config.workspace).child(f"shards/{split}")
        stage_dir = look_at_stage(store, *split_identity(config, listing))
        if manifest := read_manifest(store, ShardManifest):
            refuse_skipped(config, store, manifest)
        specs, done = plan_shards(listing, config.shards, shuffle=split == "train"), _done(stage_dir)
        missing = [spec for spec in specs if spec.name not in done]
        known = listing.source.layout != "rows"  # of Parquet's images no lengths are listed
        sizes = sum(int(spec.images["size"].to_numpy().sum()) for spec in missing) if known else None
        sizes = 0 if config.shards.adopt else sizes
        works.append(work_of(stage_dir.store, "shards", len(specs), len(specs) - len(missing), sizes))
    return works


def _label(config: RunFile, say: Say) -> list[Work]:
    config, split = settled(config), Split.open(config.workspace, "train", config.cache)
    if not split.pairs:
        raise UserError(f"{split.store}: no shard holds two images to mix; raise shards.samples_per_shard")
    config = compiled(config, views=len(split) * config.labels.views)
    store = Store(config.workspace).child(f"labels/{config.labels.name}")
    identity = label_identity(config, split).to_json()
    stage_dir = look_at_stage(store, identity, pixel_versions(), "use another labels.name, or restore the run file")
    say(_on_devices(config, teacher_line))
    valid = {name: one for name, one in valid_receipts(store).items() if one.made_by == stage_dir.made_by}
    specs = label_specs(
        valid, len(split.rows), config.labels.views // config.views.repeats, config.labels.passes_per_part
    )
    passes = sum(
        (one.end_pass - one.first_pass) * (split.rows[one.shard] // 2) for one in specs if one.name not in valid
    )
    each = label_bytes(config, len(split.classes), max(split.rows)).each if passes else 0.0
    done = sum(spec.name in valid for spec in specs)
    return [work_of(store, "parts", len(specs), done, round(2 * passes * config.views.repeats * each))]


def _train(config: RunFile, say: Say) -> list[Work]:
    run = validating(settled(config), say)
    if run.train.follow and not receipt_names(Store(run.workspace).child(f"labels/{run.labels.name}")):
        say(f"labels {run.labels.name}: none is there yet; the training would wait for the first part")
        return [_planned_training(run, Split.open(run.workspace, "train", run.cache), say)]
    plan = plan_training(run, device_count(run))
    stage_dir = look_at_stage(
        run_store(run.workspace, run.train.name),
        plan.made_from,
        pixel_versions(),
        "use another train.name, or restore the run file",
    )
    say(_on_devices(run, student_line))
    return [_training(run, plan.split, plan.steps, plan.steps_per_epoch, stage_dir.store)]


def _training(run: RunFile, split: Any, steps: int, steps_per_epoch: int, store: Store) -> Work:
    size = model_bytes(new_student(run, split).model, run.train)
    done = int(max((one for one in receipt_names(store) if one.startswith("step-")), default="step-0")[5:])
    saves = -(-steps // (run.train.checkpoint_every or steps_per_epoch))
    kept = min(saves, run.train.keep_checkpoints + 2)  # the best, and the next while it is written
    stored = kept * size.checkpoint + size.weights * (2 if run.train.ema_decay else 1)
    return work_of(store, "steps", steps, done, stored if done < steps else 0)


def _planned_training(run: RunFile, split: Split | ListedSplit, say: Say) -> Work:
    """A training whose labels are not there yet: everything else is checked."""
    steps_per_epoch, steps = planned_steps(run, split, device_count(run))
    if run.train.distillation in TAUGHT:
        refuse_few_views(run, split, run.labels.views // run.views.repeats, steps)
    say(_on_devices(run, student_line))
    return _training(run, split, steps, steps_per_epoch, run_store(run.workspace, run.train.name))


def _evaluate(config: RunFile, say: Say) -> list[Work]:
    config = compiled(settled(config))
    image_set = noted(open_image_set(config), config.evaluate.source)
    if config.evaluate.labels == "imagenet-real":
        refuse_other_classes(image_set.classes)
    works = []
    for own, ref in wanted_models(config):
        evaluated = open_evaluated_model(own, ref, image_set, torch.device("cpu"))
        made_from = all_that_made(own, evaluated, image_set)
        store = Store(config.workspace).child(predictions_folder(evaluated, image_set, made_from))
        done = _done(look_at_stage(store, made_from, made_from["versions"], "delete that folder"))
        missing = [count for block, count in enumerate(image_set.rows) if BlockSpec(block).name not in done]
        count = len(image_set.rows)
        works.append(work_of(store, "parts", count, count - len(missing), _PREDICTION_BYTES * sum(missing)))
    return works


def _everything(config: RunFile, say: Say) -> list[Work]:
    """All stages in order; from the first on whose inputs are not there, by the listed source."""
    listings = listed_splits(config)
    works = _shard_works(config, listings)
    taught = config.train.distillation in TAUGHT
    if any(work.left for work in works):
        rows = tuple(len(one.images) for one in plan_shards(listings["train"], config.shards, shuffle=False))
        return [*works, *_planned(config, ListedSplit(rows, listings["train"].classes), say)]
    if not taught:
        return [*works, *_train(config, say)]
    works += (labelling := _label(config, say))
    whole = read_manifest(Store(config.workspace).child(f"labels/{config.labels.name}"), LabelManifest)
    if labelling[0].left or whole is None:
        run = settled(config)
        return [*works, _planned_training(run, Split.open(run.workspace, "train", run.cache), say)]
    training = _train(config, say)
    return [*works, *training, *(_evaluate(config, say) if config.source.val and not training[0].left else [])]


def _planned(config: RunFile, split: ListedSplit, say: Say) -> list[Work]:
    """Labelling and training of a split that is not sharded yet."""
    run, works = settled(config), []
    if run.train.distillation in TAUGHT:
        if not split.pairs:
            raise UserError("source.train: no shard would hold two images to mix; raise shards.samples_per_shard")
        own = compiled(run, views=len(split) * run.labels.views)
        teacher_identity(own, split)
        say(_on_devices(own, teacher_line))
        specs = label_specs({}, len(split.rows), run.labels.views // run.views.repeats, run.labels.passes_per_part)
        each = label_bytes(own, len(split.classes), max(split.rows)).each
        store = Store(run.workspace).child(f"labels/{run.labels.name}")
        works.append(work_of(store, "parts", len(specs), 0, round(2 * split.pairs * run.labels.views * each)))
    return [*works, _planned_training(run, split, say)]


def _done(stage_dir: StageDir) -> set[str]:
    """Parts of a folder that are done by its own plan."""
    return {name for name, one in valid_receipts(stage_dir.store).items() if one.made_by == stage_dir.made_by}


def _on_devices(config: RunFile, line: Callable[[RunFile], str]) -> str:
    """The line with which the command would begin; a cluster is asked whether it has the devices.

    Raises:
        UserError: if there is no such device, or the cluster has too few.
    """
    _refuse_few_devices(config)
    return f"would run {line(config)}"


def _refuse_few_devices(config: RunFile) -> None:
    if config.cluster.address in (INLINE, LOCAL):
        return
    kind, wanted = ("GPU" if run_device(config) == "cuda" else "CPU"), device_count(config)
    with ray_session(config.cluster) as ray:
        there = int(ray.cluster_resources().get(kind, 0))
    if there < wanted:
        raise UserError(
            f"cluster.devices = {wanted}: the cluster at {config.cluster.address} has {there} {kind}s; lower it, or "
            "add nodes"
        )


_STAGES: dict[str, Callable[[RunFile, Say], list[Work]]] = {
    "shard": _shard,
    "label": _label,
    "train": _train,
    "evaluate": _evaluate,
}
