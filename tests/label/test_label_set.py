"""What a label set kept is what the student learns: classes or probabilities, from every store alike."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.commands import run as stages
from stages.data.split import Split
from stages.label.label_set import LabelSet
from stages.train.plan import plan_training
from stages.train.trainer import Trainer
from tests.support.world import TINY_VIT, silent, stored

SINGLE = {"student": {"model": "deit_tiny_patch16_224", "extra": TINY_VIT}}
STORES = {
    "hard": {},
    "topk": {"labels": {"name": "topk", "store": "topk", "topk": 3}},
    "full": {"labels": {"name": "full", "store": "full"}},
    "compact": {"labels": {"name": "compact", "store": "compact", "topk": 3}},
    "sampled": {"labels": {"name": "sampled", "store": "sampled", "samples": 1000}},
}


@pytest.fixture
def labelled(copied):
    """Run files of a workspace in which the same views are labelled with every store, at temperature 3."""
    for store in STORES.keys() - {"hard"}:
        stages.label(copied(STORES[store], {"train": {"tau": 3.0}}), silent)
    return lambda store, train, *more: copied(STORES[store], {"train": {"name": "new", "tau": 3.0} | train}, *more)


def first_terms(run) -> dict[str, torch.Tensor]:
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=torch.device("cpu"))
    trainer._seed_model(0, 0)
    return trainer._losses(trainer.data[0])


def test_every_store_teaches_the_same_classes(labelled):
    terms = [first_terms(labelled(store, {"distillation": "hard"})) for store in STORES]
    assert all(one == terms[0] for one in terms)


@pytest.mark.parametrize("student", [{}, SINGLE], ids=["token", "single head"])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_three_logits_of_four_classes_teach_what_all_four_teach(labelled, tau, student):
    soft = {"distillation": "soft", "tau": tau, "soft_reduction": "paper"}
    topk, full = (first_terms(labelled(store, soft, student)) for store in ("topk", "full"))
    assert full["teacher_loss"] > 0.01
    torch.testing.assert_close(topk["teacher_loss"], full["teacher_loss"])
    authors = first_terms(labelled("full", soft | {"soft_reduction": "authors"}, student))
    torch.testing.assert_close(authors["teacher_loss"], full["teacher_loss"] / 4)


@pytest.mark.parametrize(("store", "tau"), [("compact", 1.0), ("compact", 3.0), ("sampled", 3.0)])
def test_small_stores_teach_nearly_what_all_logits_teach(labelled, store, tau):
    soft = {"distillation": "soft", "tau": tau, "soft_reduction": "paper"}
    small, full = (first_terms(labelled(one, soft))["teacher_loss"] for one in (store, "full"))
    assert small != full
    torch.testing.assert_close(small / tau**2, full / tau**2, atol=1e-2, rtol=0)


def test_samples_do_not_depend_on_how_passes_are_dealt_into_parts(copied):
    settings = {"store": "sampled", "samples": 5}
    for name, passes in (("by-two", 2), ("by-five", 5)):
        stages.label(copied({"labels": settings | {"name": name, "passes_per_part": passes}}), silent)
    found = {name: samples(copied(), name) for name in ("by-two", "by-five")}
    assert found["by-two"] == found["by-five"] and len(found["by-two"]) == 360
    assert len(set(found["by-two"].values())) > 4


def samples(run, name: str) -> dict[tuple[int, int, int], tuple[int, ...]]:
    tables = [pq.read_table(file).to_pylist() for file in Path(run.workspace, "labels", name).glob("*.parquet")]
    return {(row["shard"], row["row"], row["view"]): tuple(row["samples"]) for table in tables for row in table}


def test_samples_of_one_temperature_are_refused_at_another(labelled, refused):
    line = refused(plan_training, labelled("sampled", {"distillation": "soft", "tau": 1.0}), 1)
    assert line.startswith("train.tau = 1: ") and "is normalised for 3; set train.tau to that" in line
    plan_training(labelled("sampled", {"distillation": "soft", "tau": 3.0}), 1)


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


@pytest.mark.parametrize("store", ["topk", "compact"])
def test_as_many_logits_as_classes_are_refused_in_favour_of_full(copied, refused, store):
    run = copied({"labels": {"name": "new", "store": store, "topk": 4}})
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


SELECTED = {"distillation": "hard", "min_margin": 0.5}


@pytest.mark.parametrize("store", ["topk", "full", "compact"])
def test_views_below_the_margin_learn_their_true_label(labelled, store):
    run = labelled(store, SELECTED)
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=torch.device("cpu"))
    batch = trainer.data[0]
    units = trainer.data.units(0)
    slots = [(unit.shard, row, unit.view) for unit in units for row in (unit.row_a, unit.row_b)]
    margins = trainer.plan.labels.margins(slots)
    exact = LabelSet.open(labelled("full", {}), trainer.plan.split).margins(slots)
    torch.testing.assert_close(margins, exact, atol=0.07, rtol=0)  # half a step of the compact store
    assert torch.equal(batch.kept, margins >= 0.5) and 0 < batch.kept.sum() < len(batch.kept)
    trainer._seed_model(0, 0)
    terms = trainer._losses(batch)
    assert terms["kept_decisions"] == batch.kept.float().mean()
    none = first_terms(labelled(store, SELECTED | {"min_margin": 1e9}))["teacher_loss"]
    truth = first_terms(labelled("hard", {"distillation": "label"}))["label_loss"]
    torch.testing.assert_close(none, truth)
    least = first_terms(labelled(store, SELECTED | {"min_margin": 1e-9}))
    if least["kept_decisions"] == 1:  # the compact store keeps the smallest margins as 0
        torch.testing.assert_close(least["teacher_loss"], first_terms(labelled("hard", {}))["teacher_loss"])
    assert store == "compact" or least["kept_decisions"] == 1
    assert terms["teacher_loss"] not in (none, least["teacher_loss"])


def test_a_set_without_margins_selects_nothing(labelled, refused):
    run = labelled("topk", SELECTED, {"labels": {"name": "teacher"}})
    line = refused(plan_training, run, 1)
    assert line.startswith("train.min_margin = 0.5: ") and "keeps no margins" in line
    assert "keeps no margins" in refused(plan_training, labelled("topk", SELECTED, {"labels": {"name": "sampled"}}), 1)


def test_a_run_that_selects_nothing_is_the_run_of_earlier_versions(labelled):
    plain, selected = (plan_training(labelled("topk", one), 1).made_from["train"] for one in ({}, SELECTED))
    assert "min_margin" not in plain and selected["min_margin"] == 0.5


def test_probability_outside_of_the_stored_logits_is_measured_and_warned_of_where_it_is_learned(copied):
    said: list[str] = []
    one = copied({"labels": {"name": "few", "store": "topk", "topk": 1}, "train": {"tau": 3.0}})
    stages.label(one, said.append)
    labels = LabelSet.open(one, Split.open(one.workspace, "train"))
    lost = labels.lost_mass(3.0)
    full = copied({"labels": {"name": "all", "store": "full"}, "train": {"tau": 3.0}})
    stages.label(full, silent)
    everything = LabelSet.open(full, Split.open(full.workspace, "train"))
    (path, *_) = sorted(Path(full.workspace, "labels/all").glob("shard-000000.passes-00000-*.parquet"))
    logits = np.array(pq.read_table(path)["logits"].to_pylist(), np.float32) / 3
    kept = np.exp(logits.max(1)) / np.exp(logits).sum(1)
    assert lost == pytest.approx(1 - kept.mean(), abs=1e-3) and lost > 0.1 and everything.lost_mass(3.0) == 0
    wanted = f"warning: {lost:.0%} of the teacher's probability at train.tau = 3 lies outside the 1 logits"
    assert any(line.startswith(wanted) for line in said)
    soft = copied(SINGLE, {"labels": {"name": "few", "store": "topk", "topk": 1}},
                  {"train": {"name": "few", "tau": 3.0, "distillation": "soft", "max_steps": 1}})  # fmt: skip
    said.clear()
    stages.train(soft, said.append)
    assert any(line.startswith(wanted) for line in said)
    said.clear()
    stages.label(full, said.append)
    assert not any("lies outside" in line for line in said)
