"""The losses against cases computed by hand, and against timm's targets."""

import math

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

from stages.train.losses import (
    class_loss,
    hard_distillation,
    selected_distillation,
    soft_distillation,
    soft_targets,
    topk_distillation,
    total,
)

# softmax of a row of logarithms is the row itself, divided by its sum
STUDENT = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]).log()
TEACHER = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.3, 0.6]]).log()


def random_logits(seed: int, rows: int = 6, classes: int = 10) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_smoothing_spreads_over_all_classes_the_true_one_included():
    targets = soft_targets(torch.tensor([2]), torch.tensor([2]), torch.tensor([0.3]), num_classes=4, smoothing=0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025]]))


def test_mixed_targets_weigh_the_first_class_with_lambda():
    targets = soft_targets(
        torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([0.7, 0.2]), num_classes=3, smoothing=0.0
    )
    torch.testing.assert_close(targets, torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]]))


def test_targets_equal_timms_for_its_pairing():
    classes, lam = torch.tensor([3, 0, 3, 9, 5, 1]), torch.tensor([0.9, 0.1, 0.5, 0.0, 1.0, 0.3])
    ours = soft_targets(classes, classes.flip(0), lam, num_classes=10, smoothing=0.1)
    torch.testing.assert_close(ours, mixup_target(classes, 10, lam[:, None], 0.1))
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(6))


def test_targets_take_the_integers_that_labels_are_stored_in():
    wide, narrow = torch.tensor([3, 999]), torch.tensor([3, 999], dtype=torch.uint16)
    lam = torch.tensor([0.25, 1.0], dtype=torch.float64)
    both = [soft_targets(one, one, lam, num_classes=1000, smoothing=0.1) for one in (wide, narrow)]
    assert both[0].dtype == torch.float32
    assert torch.equal(*both)


def test_class_loss_is_the_mean_cross_entropy_by_hand():
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    by_hand = (0.5 * math.log(2) + 0.5 * math.log(4) - math.log(0.6)) / 2
    assert class_loss(STUDENT, targets).item() == pytest.approx(by_hand, rel=1e-6)


def test_class_loss_equals_timms_soft_target_cross_entropy():
    logits, targets = random_logits(0), random_logits(1).softmax(dim=1)
    torch.testing.assert_close(class_loss(logits, targets), SoftTargetCrossEntropy()(logits, targets))


def test_hard_distillation_is_unsmoothed_cross_entropy_by_hand():
    by_hand = -(math.log(0.25) + math.log(0.2)) / 2
    assert hard_distillation(STUDENT, torch.tensor([1, 0])).item() == pytest.approx(by_hand, rel=1e-6)
    assert hard_distillation(STUDENT, torch.tensor([1, 0], dtype=torch.uint16)).item() == pytest.approx(
        by_hand, rel=1e-6
    )


def test_soft_distillation_is_the_divergence_by_hand_at_temperature_one():
    first = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)
    second = 0.1 * math.log(0.1 / 0.2) + 0.3 * math.log(0.3 / 0.2)
    loss = soft_distillation(STUDENT, TEACHER, tau=1.0, reduction="paper")
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_is_the_full_divergence_of_teacher_from_student(tau):
    student, teacher = random_logits(2), random_logits(3)
    p = (teacher.double() / tau).softmax(dim=1)
    q = (student.double() / tau).softmax(dim=1)
    full = tau**2 * (p * (p / q).log()).sum(dim=1).mean()
    loss = soft_distillation(student, teacher, tau=tau, reduction="paper")
    assert loss.item() == pytest.approx(full.item(), rel=1e-5)
    backwards = tau**2 * (q * (q / p).log()).sum(dim=1).mean()
    assert loss.item() != pytest.approx(backwards.item(), rel=1e-2)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_authors_reduction_is_smaller_by_the_number_of_classes(tau):
    student, teacher = random_logits(4, classes=1000), random_logits(5, classes=1000)
    paper, authors = (
        soft_distillation(student, teacher, tau=tau, reduction=reduction).item() for reduction in ("paper", "authors")
    )
    assert authors == pytest.approx(paper / 1000, rel=1e-6)


def test_total_weighs_the_teacher_with_alpha_and_without_one_is_the_class_term():
    one, three = torch.tensor(1.0), torch.tensor(3.0)
    assert total(one, three, alpha=0.1).item() == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert total(one, None, alpha=0.1).item() == 1.0


def test_losses_of_bf16_logits_are_computed_in_float32():
    student, teacher = random_logits(6).bfloat16(), random_logits(7).bfloat16()
    targets, decision = random_logits(8).softmax(dim=1), torch.arange(6)
    for loss in (
        lambda s, t: class_loss(s, targets),
        lambda s, t: hard_distillation(s, decision),
        lambda s, t: soft_distillation(s, t, tau=3.0, reduction="paper"),
    ):
        assert loss(student, teacher).dtype == torch.float32
        assert torch.equal(loss(student, teacher), loss(student.float(), teacher.float()))


def kept(teacher: torch.Tensor, k: int, tau: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values, classes = teacher.topk(k)
    return values, classes, (teacher / tau).logsumexp(1)


@pytest.mark.parametrize("reduction", ["authors", "paper"])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_topk_equals_the_full_distribution_where_the_tail_is_even(tau, reduction):
    student, teacher = random_logits(9), random_logits(10)
    values, classes = teacher.topk(4)
    teacher = torch.full_like(teacher, -2.0).scatter(1, classes, values.abs())
    full = soft_distillation(student, teacher, tau=tau, reduction=reduction)
    loss = topk_distillation(student, *kept(teacher, 4, tau), tau=tau, reduction=reduction)
    torch.testing.assert_close(loss, full)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_topk_misses_of_the_full_divergence_what_the_tail_is_from_even(tau):
    teacher = random_logits(11, classes=100)
    student = torch.zeros_like(teacher)  # even in the tail, so that nothing else differs
    p = (teacher.double() / tau).softmax(1)
    tail = p.sort(descending=True).values[:, 10:]
    mass = tail.sum(1)
    missed = tau**2 * (tail * (tail * 90 / mass[:, None]).log()).sum(1).mean()
    full = soft_distillation(student, teacher, tau=tau, reduction="paper")
    loss = topk_distillation(student, *kept(teacher, 10, tau), tau=tau, reduction="paper")
    assert (full - loss).item() == pytest.approx(missed.item(), rel=1e-3)
    assert missed > 1e-3


def test_topk_pulls_the_student_where_the_full_distribution_pulls_it():
    teacher = 3 * random_logits(12, classes=100)  # as sure of itself as a trained one
    grads = []
    for loss in (
        lambda s: soft_distillation(s, teacher, tau=1.0, reduction="paper"),
        lambda s: topk_distillation(s, *kept(teacher, 10, 1.0), tau=1.0, reduction="paper"),
    ):
        student = random_logits(13, classes=100).requires_grad_()
        loss(student).backward()
        grads.append(student.grad)
    p_top = teacher.softmax(1).gather(1, teacher.topk(10).indices)
    top = [grad.gather(1, teacher.topk(10).indices) for grad in grads]
    torch.testing.assert_close(*top)  # of the k classes exactly: their probabilities are the true ones
    assert p_top.sum(1).min() < 0.999
    assert torch.nn.functional.cosine_similarity(*(grad.flatten() for grad in grads), dim=0) > 0.999


def test_topk_of_a_certain_teacher_has_no_tail_and_a_finite_gradient():
    student = random_logits(14).requires_grad_()
    logits, classes = torch.tensor([[60.0, 1.0]] * 6).half(), torch.tensor([[3, 1]] * 6)
    loss = topk_distillation(student, logits, classes, torch.full((6,), 59.999), tau=1.0, reduction="paper")
    loss.backward()
    expected = -student.detach().log_softmax(1)[:, 3].mean()
    assert loss.item() == pytest.approx(expected.item(), abs=0.01)
    assert torch.isfinite(student.grad).all()


def test_selected_decisions_are_learned_and_the_others_give_way_to_the_truth():
    targets = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.3, 0.7]])
    decisions = torch.tensor([1, 0])
    found = selected_distillation(STUDENT, decisions, torch.tensor([True, False]), targets)
    expected = (math.log(4) - 0.3 * math.log(0.2) - 0.7 * math.log(0.6)) / 2
    assert float(found) == pytest.approx(expected)
    both = selected_distillation(STUDENT, decisions, torch.tensor([True, True]), targets)
    torch.testing.assert_close(both, hard_distillation(STUDENT, decisions))
    neither = selected_distillation(STUDENT, decisions, torch.tensor([False, False]), targets)
    torch.testing.assert_close(neither, class_loss(STUDENT, targets))


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_topk_of_all_classes_is_soft_distillation(tau):
    teacher, student = random_logits(0), random_logits(1)
    classes = torch.arange(10).expand(6, -1)
    found = topk_distillation(student, teacher, classes, (teacher / tau).logsumexp(1), tau=tau, reduction="paper")
    torch.testing.assert_close(found, soft_distillation(student, teacher, tau=tau, reduction="paper"))
