"""Distillation as everybody else runs it: the teacher's forward pass inside every step. For `parity.py`.

`by_trainer` is the project's own step with the teacher beside it; no label set is opened. `by_authors_formula` shares
no training code with it: timm's distilled model, timm's parameter groups and schedule, torch's AdamW, and the loss
written from equation 3 of Touvron et al. 2021 in the form of the authors' loss, which runs the teacher itself.
Both read the run's stream, and draw stochastic depth from its seeds.

Legend: B views of a local batch, K classes.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from schemas.config import RunFile
from stages.data.loader import load
from stages.models.student import new_student
from stages.models.teacher import Teacher
from stages.models.tensors import to_bytes
from stages.replay.draws import Draws, Purpose
from stages.replay.mix import mix, normalise
from stages.train.dataset import Batch, TrainDataset
from stages.train.losses import soft_targets
from stages.train.plan import Plan, plan_training
from stages.train.trainer import Trainer

Address = tuple[int, int, int]
CPU = torch.device("cpu")


@dataclass
class Walk:
    """What a training came by.

    Attributes:
        decisions: (shard, row, view) → the class that the teacher gave it in the loop.
        weights: number of steps → sha256 of the student's weights after them.
    """

    decisions: dict[Address, int] = field(default_factory=dict)
    weights: dict[int, str] = field(default_factory=dict)

    def step(self, dataset: TrainDataset, batch: Batch, decisions: Tensor) -> None:
        """Note the decisions of a step."""
        units = dataset.units(batch.step)
        addresses = [(unit.shard, row, unit.view) for unit in units for row in (unit.row_a, unit.row_b)]
        self.decisions |= dict(zip(addresses, decisions.tolist(), strict=True))


def digest(model: nn.Module) -> str:
    """Hex sha256 of a model's weights, in the bytes that a run stores."""
    return hashlib.sha256(to_bytes(model.state_dict())).hexdigest()


def by_trainer(run: RunFile, *, rank: int = 0, world: int = 1) -> Walk:
    """The trainer's steps, with the decisions of a teacher that runs in the loop."""
    plan, teacher = opened(run, world)
    trainer, walk = Trainer(run, plan, rank=rank, world=world, device=CPU), Walk()
    for batch in load(trainer.data, workers=run.train.processes, order=range(plan.steps)):
        decisions = teacher.logits(batch.views, batch.mix).argmax(1)
        trainer.step(batch._replace(decisions=decisions))
        walk.step(trainer.data, batch, decisions)
        if (batch.step + 1) % trainer.checkpoint_every == 0:
            walk.weights[batch.step + 1] = digest(trainer.classifier.model)
    return walk


def opened(run: RunFile, world: int) -> tuple[Plan, Teacher]:
    """The plan of a training that needs no labels, and the teacher."""
    alone = run.model_copy(update={"train": run.train.model_copy(update={"distillation": "none"})})
    plan = plan_training(alone, world)
    classes, size = len(plan.split.classes), run.views.image_size
    return plan, Teacher(run.teacher, workspace=run.workspace, num_classes=classes, image_size=size, device=CPU)


class HardDistillation(nn.Module):
    """Equation 3: (1 - α) · CE(ψ(Z_s), y) + α · CE(ψ(Z_s), y_t), with y_t = argmax of the teacher's logits.

    The class head takes the first term and the distillation head the second. α is 1/2 in the paper.

    Args:
        teacher: images' teacher logits, for the batch at hand.
        alpha: α.
    """

    def __init__(self, teacher: Callable[[Batch], Tensor], alpha: float) -> None:
        super().__init__()
        self.base, self.teacher, self.alpha = SoftTargetCrossEntropy(), teacher, alpha

    def forward(self, batch: Batch, heads: tuple[Tensor, Tensor], targets_BK: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the teacher's decisions."""
        class_logits_BK, distillation_logits_BK = heads
        with torch.no_grad():
            decisions_B = self.teacher(batch).argmax(dim=1)
        base_loss = self.base(class_logits_BK, targets_BK)
        distillation_loss = cross_entropy(distillation_logits_BK, decisions_B)
        return base_loss * (1 - self.alpha) + distillation_loss * self.alpha, decisions_B


def by_authors_formula(run: RunFile) -> Walk:
    """A plain training loop on the run's stream; one process."""
    plan, teacher = opened(run, 1)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))  # the trainer's number, since sums are split by it
    classifier = new_student(run, plan.split)
    model: Any = classifier.model
    model.set_distilled_training(True)
    train, walk = run.train, Walk()
    groups = param_groups_weight_decay(model, train.weight_decay, no_weight_decay_list=("pos_embed", "cls_token"))
    optimizer = torch.optim.AdamW(groups, lr=train.lr * train.batch_size / 512)
    schedule = CosineLRScheduler(
        optimizer, train.epochs, train.min_lr, warmup_t=train.warmup_epochs, warmup_lr_init=train.warmup_lr
    )
    criterion = HardDistillation(lambda batch: teacher.logits(batch.views, batch.mix), train.alpha)
    model.train()
    data, batches = _stream(run, plan)
    for batch in batches:
        torch.manual_seed(_depth_seed(train.seed, batch.step))
        images = mix(normalise(batch.views, classifier.mean, classifier.std), batch.mix)
        loss, decisions = criterion(batch, model(images), _targets(batch, len(plan.split.classes), train))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = batch.step + 1
        if done % plan.steps_per_epoch == 0:
            schedule.step(batch.step // plan.steps_per_epoch)
        walk.step(data, batch, decisions)
        if done % train.checkpoint_every == 0:
            walk.weights[done] = digest(model)
    return walk


def _stream(run: RunFile, plan: Plan) -> tuple[TrainDataset, Iterator[Batch]]:
    data = TrainDataset(plan.split, run.views, plan.stream(run), None, batch=run.train.batch_size, rank=0, world=1)
    return data, load(data, workers=run.train.processes, order=range(plan.steps))


def _depth_seed(seed: int, step: int) -> int:
    """Where stochastic depth of a step begins, as the trainer has it."""
    return int(Draws(seed, Purpose.MODEL).at(step, 0, 0).words(1)[0] >> 1)


def _targets(batch: Batch, classes: int, train: Any) -> Tensor:
    partners = batch.classes.unflatten(0, (-1, 2)).flip(1).flatten()
    lam = batch.mix.lam.repeat_interleave(2)
    return soft_targets(batch.classes, partners, lam, num_classes=classes, smoothing=train.label_smoothing)
