"""What a label set kept is what the student learns: classes or probabilities, from every store alike."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.commands import run as stages
from stages.train.plan import plan_training
from stages.train.trainer import Trainer
from tests.support.world import TINY_VIT, silent, stored

SINGLE = {"student": {"model": "deit_tiny_patch16_224", "extra": TINY_VIT}}
STORES = {
    "hard": {},
    "topk": {"labels": {"name": "topk", "store": "topk", "topk": 3}},
    "full": {"labels": {"name": "full", "store": "full"}},
}


@pytest.fixture
def labelled(copied):
    """Run files of a workspace in which the same views are labelled with every store, at temperature 3."""
    for store in ("topk", "full"):
        stages.label(copied(STORES[store], {"train": {"tau": 3.0}}), silent)
    return lambda store, train, *more: copied(STORES[store], {"train": {"name": "new", "tau": 3.0} | train}, *more)


def first_terms(run) -> dict[str, torch.Tensor]:
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=torch.device("cpu"))
    trainer._seed_model(0, 0)
    return trainer._losses(trainer.data[0])


def test_every_store_teaches_the_same_classes(labelled):
    terms = [first_terms(labelled(store, {"distillation": "hard"})) for store in STORES]
    assert terms[0] == terms[1] == terms[2]


@pytest.mark.parametrize("student", [{}, SINGLE], ids=["token", "single head"])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_three_logits_of_four_classes_teach_what_all_four_teach(labelled, tau, student):
    soft = {"distillation": "soft", "tau": tau, "soft_reduction": "paper"}
    topk, full = (first_terms(labelled(store, soft, student)) for store in ("topk", "full"))
    assert full["teacher_loss"] > 0.01
    torch.testing.assert_close(topk["teacher_loss"], full["teacher_loss"])
    authors = first_terms(labelled("full", soft | {"soft_reduction": "authors"}, student))
    torch.testing.assert_close(authors["teacher_loss"], full["teacher_loss"] / 4)


def test_soft_distillation_brings_the_student_nearer_to_the_teacher(labelled):
    run = labelled("topk", {"distillation": "soft", "soft_reduction": "paper", "epochs": 4, "micro_batch": 8})
    stages.train(run, silent)
    lines = Path(run.workspace, "runs/new/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["teacher_loss"] for line in lines]
    assert losses[-1] < 0.7 * losses[0]


def test_another_temperature_than_the_one_normalised_for_is_refused(labelled, refused):
    line = refused(plan_training, labelled("topk", {"distillation": "soft", "tau": 2.0}), 1)
    assert line.startswith("train.tau = 2: ") and "is normalised for 3 and 1" in line
    plan_training(labelled("full", {"distillation": "soft", "tau": 2.0}), 1)


def test_classes_alone_teach_no_probabilities(labelled, refused):
    run = labelled("topk", {"distillation": "soft"}, {"labels": {"name": "teacher"}})
    assert "keeps classes alone" in refused(plan_training, run, 1)


def test_as_many_logits_as_classes_are_refused_in_favour_of_full(copied, refused):
    run = copied({"labels": {"name": "new", "store": "topk", "topk": 4}})
    assert refused(stages.label, run, silent).startswith("labels.topk = 4: must be less than the 4 classes")
    assert not any("new" in name for name in stored(Path(run.workspace, "labels")))


def test_the_control_teaches_both_heads_the_truth_and_needs_no_labels(fresh):
    run = fresh({"train": {"distillation": "label", "alpha": 0.25, "max_steps": 2}})
    stages.shard(run, silent)
    terms = first_terms(run)
    assert terms["label_loss"] != terms["class_loss"]
    torch.testing.assert_close(terms["loss"], 0.75 * terms["class_loss"] + 0.25 * terms["label_loss"])
    assert stages.train(run, silent)["steps"] == 2


def test_the_control_is_refused_for_a_student_with_one_class_token(fresh, refused):
    run = fresh({"train": {"distillation": "label"}}, SINGLE)
    stages.shard(run, silent)
    line = refused(stages.train, run, silent)
    assert line.endswith("deit_tiny_patch16_224 has no second class token; choose a distilled student")
