"""What is said of decisions is true of them: margins, ties, flips, agreement, and that they can be made again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.commands import inspect
from pipeline.commands.verify_deep import verify_deep
from stages.data.split import Split
from stages.data.views import ViewRenderer
from stages.inspect.agreement import class_agreement
from stages.label.label_set import LabelSet, LabelSpec
from stages.label.labeller import Labeller
from stages.label.margins import EDGES, SHARES, flips, histogram, near_tie, quantiles
from stages.label.stability import stability
from stages.models.teacher import Teacher
from stages.replay.order import pairing
from tests.support.world import decisions, silent


def manifest_of(run) -> dict:
    return json.loads(Path(run.workspace, "labels/teacher/manifest.json").read_text())


def test_quantiles_from_counts_are_those_of_the_margins_to_the_width_of_a_bin():
    margins = np.random.default_rng(0).gamma(1.5, 1.0, 20_000)
    found = quantiles(histogram(margins))
    for name, share in SHARES.items():
        assert found[name] == pytest.approx(np.quantile(margins, share), rel=0.05)


def test_counts_hold_every_margin_and_those_beyond_the_edges_at_the_ends():
    counts = histogram(np.array([0.0, 1e-9, 1.0, 1e9]))
    assert sum(counts) == 4 and len(counts) == len(EDGES) + 1
    assert (counts[0], counts[-1]) == (2, 1)
    assert quantiles([0] * len(EDGES) + [5])["p50"] == EDGES[-1]


def test_a_tie_is_judged_by_the_precision_and_by_the_size_of_the_logits():
    logits = torch.tensor([[8.0, 8.0 - 1e-5, 0.0], [8.0, 7.9, 0.0], [8.0, 5.0, 0.0]])
    margins, near = near_tie(logits, "fp32")
    torch.testing.assert_close(margins, torch.tensor([1e-5, 0.1, 3.0]), rtol=0.2, atol=0)
    assert near.tolist() == [True, False, False]
    assert near_tie(logits, "bf16")[1].tolist() == [True, True, False]


def test_flips_are_counted_with_the_margins_they_were_decided_by():
    found = flips(np.array([1, 2, 3, 4]), np.array([1, 0, 3, 0]), np.array([9.0, 0.5, 9.0, 1.5]))
    assert (found["flipped"], found["share"], found["median_margin"], found["largest_margin"]) == (2, 0.5, 1.0, 1.5)
    assert flips(np.array([1]), np.array([1]), np.array([1.0]))["largest_margin"] is None


def test_the_manifest_counts_every_margin_of_the_teacher(whole):
    manifest = manifest_of(whole)
    labeller = Labeller(whole, Split.open(whole.workspace, "train"), "cpu")
    margins = [labeller.decide(LabelSpec(shard, 0, 3)).margins for shard in range(3)]
    assert manifest["margin_counts"] == histogram(np.concatenate(margins))
    assert manifest["margins"] == quantiles(manifest["margin_counts"])
    assert 0 <= manifest["near_ties"] < 0.05


def test_agreement_by_class_adds_up_to_the_manifests(whole):
    split = Split.open(whole.workspace, "train")
    counts = class_agreement(LabelSet.open(whole, split), split, whole.views)
    assert counts.sum() == 360
    shares = manifest_of(whole)["mixed_agreement"]
    np.testing.assert_allclose(counts.sum(0) / 360, [shares[kind] for kind in ("own", "partner", "neither")])
    expected = np.zeros((4, 3), int)
    for (shard, row, view), decision in decisions(whole.workspace).items():
        classes = split.index(shard).classes
        pairs = pairing(0, shard, view // 2, split.rows[shard]).tolist()
        (partner,) = (b if a == row else a for a, b in pairs if row in (a, b))
        kind = 0 if decision == classes[row] else 1 if decision == classes[partner] else 2
        expected[classes[row], kind] += 1
    np.testing.assert_array_equal(counts, expected)


def test_deep_verification_finds_everything_as_it_was(whole):
    found = verify_deep(whole, 6, silent)
    assert found["ok"] and found["flipped"] == found["other_signatures"] == 0
    assert (found["decisions"], len(found["parts"])) == (360, 6)
    assert found["signatures"] > 20


def test_deep_verification_finds_a_teacher_that_decides_otherwise(whole, monkeypatch):
    said = Teacher.queued
    monkeypatch.setattr(Teacher, "queued", lambda self, views, how: -said(self, views, how))
    found = verify_deep(whole, 2, silent)
    assert not found["ok"] and found["share"] > 0.5 and found["other_signatures"] == 0


def test_deep_verification_finds_other_views(whole, monkeypatch):
    made = ViewRenderer.views

    def inverted(self, slots, outs):
        made(self, slots, outs)
        outs[:] = 255 - outs

    monkeypatch.setattr(ViewRenderer, "views", inverted)
    found = verify_deep(whole, 2, silent)
    assert not found["ok"] and found["other_signatures"] > 0.9 * found["signatures"]


def test_deep_verification_of_another_teachers_labels_is_refused(copied, refused):
    run = copied({"teacher": {"precision": "bf16"}})
    assert "teacher.precision" in refused(verify_deep, run, 2, silent, code=4)
    shutil.rmtree(Path(run.workspace, "labels"))
    assert "nothing is labelled yet" in refused(verify_deep, run, 2, silent)


def test_stability_finds_no_flip_that_a_batch_size_made_of_a_clear_margin(whole):
    report = stability(whole, Split.open(whole.workspace, "train"), torch.device("cpu"), 40)
    ways = [("fp32", 2), ("fp32", 64), ("fp32", 256), ("bf16", 16), ("fp16", 16)]
    assert [(one["precision"], one["batch_size"]) for one in report] == ways
    assert {one["decisions"] for one in report} == {40}
    assert all(one["largest_difference"] < 1e-4 and (one["largest_margin"] or 0) < 1e-4 for one in report[:3])
    assert 1e-4 < report[3]["largest_difference"] < 1


def test_stability_counts_a_flip_it_is_shown(whole, monkeypatch):
    said = Teacher.logits

    def leaning(self, views, how):
        return said(self, views, how) + (torch.tensor([50.0, 0, 0, 0]) if self.settings.precision == "bf16" else 0)

    monkeypatch.setattr(Teacher, "logits", leaning)
    report = stability(whole, Split.open(whole.workspace, "train"), torch.device("cpu"), 40)
    assert report[3]["share"] > 0.3 and report[3]["largest_margin"] > 0.1
    assert report[0]["share"] == 0


def test_inspect_labels_prints_draws_and_returns_the_same(whole, tmp_path):
    lines: list[str] = []
    found = inspect.labels(whole, str(tmp_path / "labels.png"), lines.append)
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")
    for name, counts in found["classes"].items():
        (line,) = (one for one in lines if one.split()[0] == name)
        assert line.split()[1] == f"{counts['own'] / sum(counts.values()):.1%}"
    assert sum(sum(counts.values()) for counts in found["classes"].values()) == 360


def test_a_picture_that_cannot_be_written_is_one_line(whole, tmp_path, refused):
    assert "cannot be written" in refused(inspect.labels, whole, str(tmp_path / "no/labels.png"), silent)
