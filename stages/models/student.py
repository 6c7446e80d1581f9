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

    classes: tuple[str, ...]


def new_student(run: RunFile, split: HasClassNames) -> Classifier:
    """The run file's student with its initial weights.

    Raises:
        UserError: if timm does not know it, or the initial checkpoint does not fit.
    """
    student = run.student
    torch.manual_seed(run.train.seed)
    classifier = _built(run, split)
    if run.train.distillation == "label" and not classifier.distilled:
        raise UserError(
            f'train.distillation = "label": {student.model} has no second class token; choose a distilled student'
        )
    if student.init_checkpoint:
        weights = find_weights(student.init_checkpoint, run.workspace, "student.init_checkpoint")
        source = f"student.init_checkpoint = {student.init_checkpoint}"
        try:
            load_weights(classifier, weights, source=source, new_head=student.new_head)
        except UserError as error:
            more = "" if student.new_head else ", or set student.new_head = true if only the classes are others"
            raise UserError(f"{error}{more}") from None
    return classifier


def trained_student(run: RunFile, split: HasClassNames, file: str, size: int = 0) -> Classifier:
    """The run file's student with the weights its run left, in `MODEL_FILE` or `EMA_FILE`.

    Args:
        run: the run file that was stored with the run.
        split: has the classes.
        file: which weights.
        size: side of the images in pixels; 0 = at which it was trained.

    Raises:
        UserError: if there are none, or they are another student's.
    """
    classifier = _built(run, split, size)
    weights = find_weights(f"run:{run.train.name}", run.workspace, "train.name", file=file)
    load_weights(classifier, weights, source=Store(run.workspace).at(f"runs/{run.train.name}").name(file))
    return classifier


def _built(run: RunFile, split: HasClassNames, size: int = 0) -> Classifier:
    return build(
        run.student.model,
        num_classes=len(split.classes),
        img_size=size or run.image_size,
        drop_path=run.student.drop_path,
        drop_rate=run.student.drop_rate,
        extra=run.student.extra,
    )
