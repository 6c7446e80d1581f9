"""The losses of distillation, in the paper's words and the authors' arithmetic.

Legend: B = views of a batch, K = classes. All return float32 whatever the logits' precision: under
bf16 a sum over 1,000 classes would lose the smoothing. Each loss is one function of tensors; rejected:
a criterion that runs the teacher itself, as online distillation needs, since here the teacher's
decision is already in the batch.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot

Reduction = Literal["authors", "paper"]


def soft_targets(class_a_B: Tensor, class_b_B: Tensor, lam_B: Tensor, *, num_classes: int, smoothing: float) -> Tensor:
    """Targets of mixed views: each member's smoothed class, weighted by its share of the view.

    Args:
        class_a_B: classes of the members with share `lam_B`, any integer type, shape (B,).
        class_b_B: classes of the other members, shape (B,); equal to `class_a_B` where nothing is mixed.
        lam_B: shares from 0 to 1, shape (B,).
        num_classes: K.
        smoothing: probability spread evenly over all K classes, the true one included.

    Returns:
        Probabilities, float32 of shape (B, K).
    """
    lam_B1 = lam_B.float()[:, None]
    hard_BK = lam_B1 * one_hot(class_a_B.long(), num_classes) + (1 - lam_B1) * one_hot(class_b_B.long(), num_classes)
    return (1 - smoothing) * hard_BK + smoothing / num_classes


def class_loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Cross-entropy against soft targets, mean over the batch: L_CE of the paper's equations 2 and 3."""
    return -(targets_BK * log_softmax(logits_BK.float(), dim=1)).sum(dim=1).mean()


def hard_distillation(logits_BK: Tensor, decision_B: Tensor) -> Tensor:
    """Cross-entropy against the teacher's class, never smoothed (equation 3), mean over the batch."""
    return cross_entropy(logits_BK.float(), decision_B.long())


def selected_distillation(logits_BK: Tensor, decision_B: Tensor, kept_B: Tensor, targets_BK: Tensor) -> Tensor:
    """`hard_distillation` of the views that are kept, `class_loss` of the others; mean over the batch.

    Args:
        logits_BK: the student's, shape (B, K).
        decision_B: the teacher's classes, any integer type, shape (B,).
        kept_B: whose decision is learned, bool of shape (B,).
        targets_BK: the true ones, from `soft_targets`, shape (B, K).
    """
    decided_BK = one_hot(decision_B.long(), logits_BK.shape[1]).to(targets_BK.dtype)
    return class_loss(logits_BK, torch.where(kept_B[:, None], decided_BK, targets_BK))


def soft_distillation(logits_BK: Tensor, teacher_logits_BK: Tensor, *, tau: float, reduction: Reduction) -> Tensor:
    """Divergence of the student from the teacher at temperature tau (equation 2).

    Args:
        logits_BK: the student's logits, shape (B, K).
        teacher_logits_BK: the teacher's logits of the same mixed views, shape (B, K).
        tau: temperature; the factor tau**2 keeps the gradient's size (Hinton et al. 2015).
        reduction: "paper" = mean over the B views; "authors" = mean over all B * K numbers, which is K times
            smaller and is what their released code ran.
    """
    student_BK = log_softmax(logits_BK.float() / tau, dim=1)
    teacher_BK = log_softmax(teacher_logits_BK.float() / tau, dim=1)
    divergence = kl_div(student_BK, teacher_BK, reduction="sum", log_target=True)
    return tau**2 * _reduced(divergence, student_BK, reduction)


def topk_distillation(
    logits_BK: Tensor,
    teacher_logits_Bk: Tensor,
    classes_Bk: Tensor,
    log_sum_exp_B: Tensor,
    *,
    tau: float,
    reduction: Reduction,
) -> Tensor:
    """`soft_distillation` from k of the teacher's logits: their probabilities are exact, the rest is spread evenly.

    The normaliser covers all K classes, so the k keep their true probabilities, and the mass m that they leave is given
    to the other K - k classes alike. Of all distributions with these k probabilities, that one has the largest
    entropy. Against the full distribution the loss misses m * KL(true tail ‖ even tail) and weighs the student's tail
    evenly; it is equal where the tail is even, or m = 0. Renormalising over the k would instead teach certainty.

    Args:
        logits_BK: the student's logits, shape (B, K).
        teacher_logits_Bk: k of the teacher's logits, shape (B, k).
        classes_Bk: their classes, int64 of shape (B, k), each once.
        log_sum_exp_B: of the teacher's K logits / tau, shape (B,).
        tau: temperature.
        reduction: as in `soft_distillation`.
    """
    student_BK = log_softmax(logits_BK.float() / tau, dim=1)
    teacher_Bk = teacher_logits_Bk.float() / tau - log_sum_exp_B.float()[:, None]
    kept_Bk = student_BK.gather(1, classes_Bk)
    mass_B = (1 - teacher_Bk.exp().sum(1)).clamp(min=0)
    rest = max(logits_BK.shape[1] - classes_Bk.shape[1], 1)  # samples may be of all classes: then there is no tail
    in_tail_BK = torch.ones_like(student_BK).scatter(1, classes_Bk, 0.0)
    tail_B = torch.xlogy(mass_B, mass_B / rest) - mass_B * (student_BK * in_tail_BK).sum(1) / rest
    divergence = (teacher_Bk.exp() * (teacher_Bk - kept_Bk)).sum() + tail_B.sum()
    return tau**2 * _reduced(divergence, student_BK, reduction)


def _reduced(total_: Tensor, logits_BK: Tensor, reduction: Reduction) -> Tensor:
    return total_ / (logits_BK.numel() if reduction == "authors" else len(logits_BK))


def total(class_term: Tensor, teacher_term: Tensor | None, *, alpha: float) -> Tensor:
    """The class term with weight 1 - alpha and the teacher's with alpha; without a teacher, the class term alone."""
    return class_term if teacher_term is None else (1 - alpha) * class_term + alpha * teacher_term
