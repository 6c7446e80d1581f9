"""What a student learns from a batch: its losses by name, from both heads' logits.

Legend: B views of a batch, K classes.
"""

from torch import Tensor

from schemas.config import TrainConfig
from stages.models.classifier import Heads
from stages.train import losses
from stages.train.dataset import Batch
from stages.train.plan import TAUGHT


def loss_terms(heads: Heads, batch: Batch, train: TrainConfig) -> dict[str, Tensor]:
    """The loss and its terms as float32 scalars, and how often the distillation head agrees with the teacher."""
    partners = batch.classes.unflatten(0, (-1, 2)).flip(1).flatten()
    targets = losses.soft_targets(
        batch.classes,
        partners,
        batch.mix.lam.repeat_interleave(2),
        num_classes=heads.classes.shape[1],
        smoothing=train.label_smoothing,
    )
    terms = {"class_loss": losses.class_loss(heads.classes, targets)}
    logits = heads.classes if heads.distillation is None else heads.distillation
    second = None
    if train.distillation in TAUGHT:
        second = terms["teacher_loss"] = _teacher_loss(logits, batch, train, targets)
        terms["teacher_agreement"] = (logits.argmax(1) == batch.decisions).float().mean()
        if batch.kept is not None:
            terms["kept_decisions"] = batch.kept.float().mean()
    elif train.distillation == "label":
        second = terms["label_loss"] = losses.class_loss(logits, targets)
    return {"loss": losses.total(terms["class_loss"], second, alpha=train.alpha)} | terms


def _teacher_loss(logits_BK: Tensor, batch: Batch, train: TrainConfig, targets_BK: Tensor) -> Tensor:
    tau, reduction, soft = train.tau, train.soft_reduction, batch.soft
    if batch.kept is not None:
        return losses.selected_distillation(logits_BK, batch.decisions, batch.kept, targets_BK)
    if soft is None:
        return losses.hard_distillation(logits_BK, batch.decisions)
    if soft.classes is None or soft.log_sum_exp is None:
        return losses.soft_distillation(logits_BK, soft.logits, tau=tau, reduction=reduction)
    return losses.topk_distillation(
        logits_BK, soft.logits, soft.classes, soft.log_sum_exp, tau=tau, reduction=reduction
    )
