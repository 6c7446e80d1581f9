"""Bytes that are foretold, against those that a run has stored."""

from pathlib import Path

import pytest

from schemas.config import RunFile
from stages.estimate.networks import student_facts
from stages.estimate.sizes import label_bytes
from stages.storage.run_files import MODEL_FILE


def test_a_checkpoint_has_the_bytes_of_its_tensors(whole):
    student = student_facts(whole, 4)
    run = Path(whole.workspace, "runs/student")
    newest = max((run / "checkpoints").iterdir())
    tensors = sum(file.stat().st_size for file in newest.glob("*.safetensors"))
    assert student.bytes.checkpoint == pytest.approx(tensors, rel=0.1)
    assert student.bytes.weights == pytest.approx((run / MODEL_FILE).stat().st_size, rel=0.1)


def test_a_label_set_of_few_images_has_the_bytes_of_its_parts(whole):
    folder = Path(whole.workspace, "labels/teacher")
    parts = [*folder.glob("*.parquet"), *folder.glob("receipts/*")]
    views = 60 * 6
    assert label_bytes(whole, 4, 20).each == pytest.approx(sum(one.stat().st_size for one in parts) / views, rel=0.25)


def test_a_decision_of_imagenet_takes_what_it_was_measured_to_take():
    assert 1.3 < label_bytes(RunFile(), 1000, 1000).each < 1.8
