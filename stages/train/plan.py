"""What a training comes to: its data, its steps and its identity, checked before anything is started.

Kept apart from the training itself because whoever launches it, and whoever follows it, plans without taking a step.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.config import RunFile
from schemas.errors import UserError
from stages.data.split import Split
from stages.label.label_set import LabelSet
from stages.models.weights import find_weights, weights_digest
from stages.replay.order import Stream
from stages.storage.commit import read_plan
from stages.storage.run_files import run_store
from stages.trackers.tracker import refuse_missing
from stages.train.dataset import TrainDataset

TAUGHT = ("hard", "soft")
"""Values of `train.distillation` that need a teacher's labels."""


@dataclass(frozen=True)
class Plan:
    """What a training comes to, checked before anything is started.

    Attributes:
        split: the training split.
        labels: the teacher's decisions; None = train without.
        steps_per_epoch: steps of one epoch.
        steps: last step to take.
        made_from: all that determines the weights.
    """

    split: Split
    labels: LabelSet | None
    steps_per_epoch: int
    steps: int
    made_from: dict[str, Any]

    def stream(self, config: RunFile) -> Stream:
        """The run's stream of views."""
        return Stream(
            self.split.rows,
            repeats=config.views.repeats,
            window=config.train.window,
            recipe_seed=config.views.seed,
            seed=config.train.seed,
            passes=self.labels.passes if self.labels else None,
        )

    def dataset(self, config: RunFile, *, rank: int, world: int, spread: bool = False) -> TrainDataset:
        """The batches of one of `world` processes; `spread` as in `TrainDataset`."""
        return TrainDataset(
            self.split,
            config.views,
            self.stream(config),
            self.labels,
            soft_tau=config.train.tau if config.train.distillation == "soft" else None,
            min_margin=config.train.min_margin,
            batch=config.train.batch_size,
            rank=rank,
            world=world,
            spread=spread,
        )


def plan_training(config: RunFile, world: int) -> Plan:
    """Open what a training reads and check that it fits.

    Raises:
        UserError: if shards or labels are missing, too few, or the batch cannot be divided.
        MismatchError: if the labels are not for these shards or this recipe.
    """
    train = config.train
    refuse_missing(config)
    split = Split.open(config.workspace, "train", config.cache)
    opened = LabelSet.follow if train.follow else LabelSet.open
    labels = opened(config, split) if train.distillation in TAUGHT else None
    if labels is not None and train.distillation == "soft":
        labels.refuse_soft(train.tau)
    if labels is not None and train.min_margin:
        labels.refuse_margins(train.min_margin)
    steps_per_epoch, steps = planned_steps(config, split, world)
    if labels is not None:
        refuse_few_views(config, split, labels.passes, steps)
    return Plan(split, labels, steps_per_epoch, steps, _made_from(config, split, labels))


class Samples(Protocol):
    """What steps are counted from: a split that is sharded, or one that will be."""

    @property
    def pairs(self) -> int:
        """Pairs that are mixed in a pass."""

    def __len__(self) -> int:
        """Images."""


def planned_steps(config: RunFile, split: Samples, world: int) -> tuple[int, int]:
    """Steps of an epoch, and of the whole training.

    Raises:
        UserError: if the batch cannot be divided, or is larger than an epoch, or the student takes other images.
    """
    train = config.train
    if train.batch_size % (2 * world):
        raise UserError(
            f"train.batch_size = {train.batch_size}: must be a multiple of {2 * world} "
            f"(two views of a pair, {world} workers)"
        )
    if config.student.img_size not in (0, config.views.image_size):
        raise UserError(
            f"student.img_size = {config.student.img_size}: views have views.image_size = "
            f"{config.views.image_size}; set it "
            "to 0; evaluate.image_size measures at another size"
        )
    steps_per_epoch = len(split) // train.batch_size
    if not steps_per_epoch or not split.pairs:
        raise UserError(f"train.batch_size = {train.batch_size}: the split has only {len(split)} samples; lower it")
    whole = steps_per_epoch * train.epochs
    steps = min(whole, train.max_steps or whole)
    return steps_per_epoch, steps


def refuse_few_views(config: RunFile, split: Samples, labelled: int, steps: int) -> None:
    """Check that so many labelled passes suffice for a training's steps.

    Raises:
        UserError: if they do not, and views are not to be reused.
    """
    passes = math.ceil(steps * config.train.batch_size / (2 * config.views.repeats * split.pairs))
    if passes > labelled and not config.train.reuse_views:
        raise UserError(
            f"{steps} steps of {config.train.batch_size} need {passes * config.views.repeats} views of each sample, "
            f"{labelled * config.views.repeats} are labelled; raise labels.views and label again, train for fewer "
            "epochs, or set train.reuse_views = true"
        )


_NO_MATTER = {
    "name", "max_steps", "workers", "checkpoint_every", "keep_checkpoints", "log_every", "tensorboard", "trackers",
    "compile", "follow", "deterministic", "validate_every", "validate_images",
}  # fmt: skip
"""Keys of `[train]` that do not change what is trained."""
_LATER: dict[str, Any] = {"min_margin": 0.0}
"""Keys of `[train]` that earlier versions had not, left out where they do what those did."""


def _made_from(config: RunFile, split: Split, labels: LabelSet | None) -> dict[str, Any]:
    settings, start = config.train.model_dump(mode="json"), config.student.init_checkpoint
    weights = find_weights(start, config.workspace, "student.init_checkpoint") if start else None
    made_from = {
        "shards": split.content,
        "recipe": config.views.identity(),
        "labels": labels.made_by if labels else None,
        "passes": labels.passes if labels and config.train.reuse_views else None,  # where the views begin again
        "student": config.student.model_dump(mode="json"),
        "started_from": weights_digest(weights) if weights else None,
        "train": {
            key: value
            for key, value in settings.items()
            if key not in _NO_MATTER and (key not in _LATER or value != _LATER[key])
        },
    }
    begun = read_plan(run_store(config.workspace, config.train.name))
    return _as_begun(made_from, begun.made_from) if begun else made_from


def _as_begun(made_from: dict[str, Any], begun: dict[str, Any]) -> dict[str, Any]:
    """Keep the stored values of settings without effect: changing them does not change the identity.

    These are the path of equal initial weights, and keys that the loss in use does not read.
    """
    student, train = dict(made_from["student"]), dict(made_from["train"])
    if made_from["started_from"] and made_from["started_from"] == begun.get("started_from"):
        student["init_checkpoint"] = begun["student"]["init_checkpoint"]
    unused = {"none": ("tau", "soft_reduction", "alpha"), "soft": ()}.get(
        train["distillation"], ("tau", "soft_reduction")
    )
    train |= {key: begun["train"][key] for key in unused if key in begun["train"]}
    return made_from | {"student": student, "train": train}
