"""A student that follows its teacher learns what it would have learned afterwards, and waits rather than fails."""

import shutil
import threading
from pathlib import Path

from pipeline.commands import run as stages
from pipeline.execution.worker import Worker
from stages.data.split import Split
from stages.label.label_set import LabelSet
from tests.support.world import command, silent, start, stored


def without_labels(run):
    """The workspace before its labels and its student."""
    shutil.rmtree(Path(run.workspace, "labels"))
    shutil.rmtree(Path(run.workspace, "runs/student"))
    return run


def test_both_commands_at_once_end_with_the_bytes_of_one_after_the_other(copied, whole, tmp_path):
    run = without_labels(copied({"train": {"workers": 1}}))
    for name in ("label", "train"):
        (tmp_path / name).mkdir()
    student = start(command("train", "--follow", config=run, folder=tmp_path / "train"))
    try:
        assert any("waiting for" in line for line in student.stderr), "it did not wait for the first part"
        teacher = start(command("label-teacher", config=run, folder=tmp_path / "label"))
        try:
            assert teacher.wait(240) == 0, teacher.communicate()
            assert student.wait(240) == 0, student.communicate()
        finally:
            teacher.kill()
    finally:
        student.kill()
    for name in ("model.safetensors", "model_ema.safetensors"):
        expected = Path(whole.workspace, "runs/student", name).read_bytes()
        assert Path(run.workspace, "runs/student", name).read_bytes() == expected
    assert stored(Path(run.workspace, "labels")) == stored(Path(whole.workspace, "labels"))


def test_training_starts_with_the_first_pass_and_waits_for_the_last(copied, monkeypatch):
    run = without_labels(copied({"train": {"follow": True, "epochs": 6}}))
    go_on, asked, make = threading.Event(), threading.Event(), Worker.run

    def held(self, spec):
        if spec.first_pass > 0:  # the first passes are labelled, the others not before they are asked for
            go_on.wait(60)
        return make(self, spec)

    wait_for = LabelSet._wait_for

    def noted(self, address):
        if address not in self._files and address[1] >= 2:
            asked.set()
            go_on.set()
        wait_for(self, address)

    monkeypatch.setattr(Worker, "run", held)
    monkeypatch.setattr(LabelSet, "_wait_for", noted)
    teacher = threading.Thread(target=stages.label, args=(run, silent))
    teacher.start()
    try:
        assert stages.train(run, silent)["steps"] == 18
        assert asked.is_set()
    finally:
        go_on.set()
        teacher.join()


def test_receipts_of_another_identity_are_not_followed(copied):
    run = copied()
    followed = LabelSet.follow(run, Split.open(run.workspace, "train"))
    assert followed.passes == 3
    followed.made_by = "another"
    followed._look()
    assert followed._files == {}


def test_labels_that_are_made_for_others_are_not_followed(copied, refused):
    run = copied({"teacher": {"batch_size": 8}})
    line = refused(LabelSet.follow, run, Split.open(run.workspace, "train"), code=4)
    assert "teacher.batch_size: 16 -> 8" in line


def test_without_following_labels_that_are_not_whole_are_refused_with_both_ways_out(copied, refused):
    run = copied()
    Path(run.workspace, "labels/teacher/manifest.json").unlink()
    line = refused(stages.train, run, silent)
    assert "label-teacher" in line and "--follow" in line


def test_following_needs_as_many_views_as_are_asked_for_not_as_are_there(copied, refused):
    run = copied({"train": {"follow": True, "epochs": 40, "name": "long"}})
    assert "views of each sample, 6 are labelled" in refused(stages.train, run, silent)
