"""Networks of a plan on this machine: what teacher and student take for a view, with random weights.

Legend: B views of a batch, S side of a view, K classes.
"""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.config import Member, RunFile
from schemas.errors import UserError
from stages.estimate.sizes import ModelBytes, model_bytes
from stages.estimate.timing import BatchCost, batch_cost
from stages.label.encoding import keep
from stages.label.soft_labels import SoftLabels
from stages.models.classifier import Classifier, build, own_size
from stages.models.flops import TRAINING, forward_flops
from stages.models.from_views import FromViews
from stages.models.precision import Precision
from stages.models.student import new_student
from stages.replay.mix import Mix, normalise
from stages.train.dataset import Batch
from stages.train.plan import TAUGHT, Plan
from stages.train.trainer import Trainer


class StudentFacts(NamedTuple):
    """A student before it is trained: its bytes, its parameters, operations of a training step for a view."""

    bytes: ModelBytes
    parameters: int
    flops: int
    transformer: bool


def student_facts(config: RunFile, classes: int) -> StudentFacts:
    """Build the student and count.

    Raises:
        UserError: if it cannot be built.
    """
    network = _student(config, classes)
    flops = TRAINING * forward_flops(network, config.image_size, torch.device("cpu"))
    parameters = sum(one.numel() for one in network.parameters())
    return StudentFacts(model_bytes(network.model, config.train), parameters, flops, network.transformer)


def _student(config: RunFile, classes: int) -> Classifier:
    plain = config.student.model_copy(update={"init_checkpoint": "", "new_head": False})
    return new_student(config.model_copy(update={"student": plain}), _NoImages(classes))


def teacher_members(config: RunFile, classes: int) -> list[tuple[Classifier, int]]:
    """The teacher's networks with random weights, and the side of the images that each takes.

    Raises:
        UserError: if one cannot be built.
    """
    return [_member(one, classes, config.views.image_size) for one in config.teacher.members]


def _member(member: Member, classes: int, image_size: int) -> tuple[Classifier, int]:
    side = member.input_size or image_size
    try:
        return build(member.model, num_classes=classes, img_size=side, drop_path=0.0, extra=member.extra), side
    except UserError:
        own = own_size(member.model)
        if member.input_size or own in (0, side):
            raise
        return build(member.model, num_classes=classes, img_size=own, drop_path=0.0, extra=member.extra), own


def teacher_flops(members: list[tuple[Classifier, int]]) -> int:
    """Operations of all networks of a teacher for a view."""
    return sum(forward_flops(model, side, torch.device("cpu")) for model, side in members)


def probe_teacher(
    config: RunFile,
    members: list[tuple[Classifier, int]],
    precision: str,
    budget: float,
    device: str,
    busy: bool,
) -> BatchCost:
    """What the teacher takes: normalised, mixed, through each network, and what is kept of the logits."""
    if device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    target = torch.device(device)
    computing = Precision(precision, target, "teacher.precision")
    networks = [
        FromViews(model.eval().to(target).to(memory_format=torch.channels_last), computing, side)  # type: ignore[call-overload]
        for model, side in members
    ]

    def make(count: int) -> Callable[[], object]:
        views, mixes = _views(config, count, target)

        @torch.inference_mode()
        def do() -> object:
            with computing.switches(search=True):
                logits = [one(*one.given(views, mixes)).fused.float() for one in networks]
            offsets = torch.zeros(count, dtype=torch.float64)
            return keep(torch.stack(logits).mean(0), config.labels, config.train.tau, offsets)

        return do

    return batch_cost(make, config.teacher.batch_size, budget, device, _threads(device, busy))


class StudentCosts(NamedTuple):
    """What a student takes for a view of a training step, and for an image that it is evaluated on, in fp32."""

    step: BatchCost
    forward: BatchCost


def probe_student(
    config: RunFile, classes: int, precision: str, share: int, budget: float, device: str, busy: bool
) -> StudentCosts:
    """Steps of the trainer itself, with its optimiser, moving average and losses, on made batches.

    Args:
        config: the run file.
        classes: K.
        precision: in which it computes.
        share: views of a step on one device.
        budget: seconds.
        device: "cpu" or "cuda".
        busy: the machine has other work.
    """
    with TemporaryDirectory(prefix="estimate-") as folder:
        changes = {"precision": precision, "compile": False, "validate_every": 0, "tensorboard": False, "trackers": ()}
        plain = {"init_checkpoint": "", "new_head": False}
        run = config.model_copy(
            update={
                "workspace": str(Path(folder)),
                "train": config.train.model_copy(update=changes),
                "student": config.student.model_copy(update=plain),
            }
        )
        split = _NoImages(classes)
        plan = Plan(split, None, 1_000, 1_000, {})  # type: ignore[arg-type]
        trainer = Trainer(run, plan, rank=0, world=1, device=torch.device(device))
        threads = _threads(device, busy)

        def stepped(count: int) -> Callable[[], object]:
            batch = _batch(run, classes, count, trainer.device)
            return lambda: trainer.step(batch)

        step = batch_cost(stepped, share, budget * 0.65, device, threads)
        network = trainer.classifier

        def evaluated(count: int) -> Callable[[], object]:
            views, _ = _views(run, count, trainer.device)

            @torch.inference_mode()
            def do() -> object:
                with Precision("fp32", trainer.device, "evaluate").switches(search=not network.transformer):
                    return network.eval()(normalise(views, network.mean, network.std))

            return do

        return StudentCosts(step, batch_cost(evaluated, config.evaluate.batch_size, budget * 0.35, device, threads))


def _threads(device: str, busy: bool) -> int:
    """Over how many threads a network's core seconds are dealt; 0 = the clock counts."""
    return torch.get_num_threads() if busy and device == "cpu" else 0


class _NoImages:
    """Stands for a split where no image is read: its classes, two rows, and no content."""

    content = ""

    def __init__(self, classes: int) -> None:
        self.classes, self.rows = tuple(map(str, range(classes))), (2,)


def _views(config: RunFile, count: int, device: torch.device) -> tuple[Tensor, Mix]:
    side = config.views.image_size
    views = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device=device)
    lam = torch.full((count // 2,), 0.7, device=device)
    return views, Mix(lam, lam, torch.zeros(count // 2, 4, dtype=torch.int32, device=device))


def _batch(config: RunFile, classes: int, count: int, device: torch.device) -> Batch:
    views, mixes = _views(config, count, device)
    truth = torch.randint(0, classes, (count,), device=device)
    taught = config.train.distillation in TAUGHT
    decisions = truth.clone() if taught else torch.empty(0, dtype=torch.int64, device=device)
    soft = None
    if config.train.distillation == "soft":
        soft = SoftLabels(torch.randn(count, classes, device=device), None, None)
    kept = torch.ones(count, dtype=torch.bool, device=device) if config.train.min_margin else None
    return Batch(0, views, truth, mixes, decisions, soft, kept)
