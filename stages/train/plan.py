"""What a training comes to: its data, its steps and its identity, checked before anything is started.

Kept apart from the training itself because whoever launches it, and whoever follows it, plans without taking a step.
"""

import math
from dataclasses import dataclass
from typing import Any

from schemas.config import RunFile
from schemas.errors import UserError
from stages.data.split import Split
from stages.label.label_set import LabelSet
from stages.models.weights import find_weights, weights_digest
from stages.replay.order import Stream
from stages.train.tensorboard import refuse_missing_tensorboard

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

    def stream(self, run: RunFile) -> Stream:
        """The run's stream of views."""
        return Stream(
            self.split.rows,
            repeats=run.views.repeats,
            window=run.train.window,
            recipe_seed=run.views.seed,
            seed=run.train.seed,
            passes=self.labels.passes if self.labels else None,
        )


def plan_training(run: RunFile, world: int) -> Plan:
    """Open what a training reads and check that it fits.

    Raises:
        UserError: if shards or labels are missing, too few, or the batch cannot be divided.
        MismatchError: if the labels are not for these shards or this recipe.
    """
    train = run.train
    if train.tensorboard:
        refuse_missing_tensorboard()
    split = Split.open(run.workspace, "train", run.cache)
    opened = LabelSet.follow if train.follow else LabelSet.open
    labels = opened(run, split) if train.distillation in TAUGHT else None
    if labels is not None and train.distillation == "soft":
        labels.refuse_soft(train.tau)
    if train.batch_size % (2 * world):
        raise UserError(
            f"train.batch_size = {train.batch_size}: must be a multiple of {2 * world} "
            f"(two views of a pair, {world} workers)"
        )
    if run.student.img_size not in (0, run.views.image_size):
        raise UserError(
            f"student.img_size = {run.student.img_size}: views have views.image_size = {run.views.image_size}; set it "
            "to 0 to train, to another size only to evaluate"
        )
    steps_per_epoch = len(split) // train.batch_size
    if not steps_per_epoch or not split.pairs:
        raise UserError(f"train.batch_size = {train.batch_size}: the split has only {len(split)} samples; lower it")
    whole = steps_per_epoch * train.epochs
    steps = min(whole, train.max_steps or whole)
    if labels is not None:
        _enough_views(run, split, labels, steps)
    return Plan(split, labels, steps_per_epoch, steps, _made_from(run, split, labels))


def _enough_views(run: RunFile, split: Split, labels: LabelSet, steps: int) -> None:
    passes = math.ceil(steps * run.train.batch_size / (2 * run.views.repeats * split.pairs))
    if passes > labels.passes and not run.train.reuse_views:
        raise UserError(
            f"{steps} steps of {run.train.batch_size} need {passes * run.views.repeats} views of each sample, "
            f"{labels.passes * run.views.repeats} are labelled; raise labels.views and label again, train for fewer "
            "epochs, or set train.reuse_views = true"
        )


_NO_MATTER = {
    "name", "max_steps", "workers", "checkpoint_every", "keep_checkpoints", "log_every", "tensorboard", "compile",
    "follow", "deterministic", "validate_every", "validate_images",
}  # fmt: skip
"""Keys of `[train]` that do not change what is trained."""


def _made_from(run: RunFile, split: Split, labels: LabelSet | None) -> dict[str, Any]:
    settings, start = run.train.model_dump(mode="json"), run.student.init_checkpoint
    weights = find_weights(start, run.workspace, "student.init_checkpoint") if start else None
    return {
        "shards": split.content,
        "recipe": run.views.model_dump(mode="json"),
        "labels": labels.made_by if labels else None,
        "passes": labels.passes if labels and run.train.reuse_views else None,  # where the views begin again
        "student": run.student.model_dump(mode="json"),
        "started_from": weights_digest(weights) if weights else None,
        "train": {key: value for key, value in settings.items() if key not in _NO_MATTER},
    }
