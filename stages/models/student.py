"""The run file's student: a new one with its initial weights, or the one that its run left."""

from typing import Protocol

import torch

from schemas.config import RunFile
from schemas.errors import UserError
from stages.models.classifier import Classifier, build
from stages.models.state_dict import load_weights
from stages.models.weights import find_weights
from stages.storage.store import Store


class HasClassNames(Protocol):
    """Anything that has class names by index: a split, or images to evaluate on."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""


def new_student(config: RunFile, split: HasClassNames) -> Classifier:
    """The run file's student with its initial weights.

    Raises:
        UserError: if timm does not know it, or the initial checkpoint does not fit.
    """
    student = config.student
    torch.manual_seed(config.train.seed)
    classifier = _built(config, split)
    if config.train.distillation == "label" and not classifier.distilled:
        raise UserError(
            f'train.distillation = "label": {student.model} has no second class token; choose a distilled student'
        )
    if student.init_checkpoint:
        weights = find_weights(student.init_checkpoint, config.workspace, "student.init_checkpoint")
        source = f"student.init_checkpoint = {student.init_checkpoint}"
        try:
            load_weights(classifier, weights, source=source, new_head=student.new_head)
        except UserError as error:
            more = "" if student.new_head else ", or set student.new_head = true if only the classes are others"
            raise UserError(f"{error}{more}") from None
    return classifier


def trained_student(config: RunFile, split: HasClassNames, file: str, size: int = 0) -> Classifier:
    """The run file's student with the weights its run left, in `MODEL_FILE` or `EMA_FILE`.

    Args:
        config: the run file that was stored with the run.
        split: has the classes.
        file: which weights.
        size: side of the images in pixels; 0 = at which it was trained.

    Raises:
        UserError: if there are none, or they are another student's.
    """
    classifier = _built(config, split, size)
    weights = find_weights(f"run:{config.train.name}", config.workspace, "train.name", file=file)
    load_weights(
        classifier, weights, source=Store(config.workspace).child(f"runs/{config.train.name}").display_path(file)
    )
    return classifier


def _built(config: RunFile, split: HasClassNames, size: int = 0) -> Classifier:
    return build(
        config.student.model,
        num_classes=len(split.classes),
        img_size=size or config.image_size,
        drop_path=config.student.drop_path,
        drop_rate=config.student.drop_rate,
        extra=config.student.extra,
    )
