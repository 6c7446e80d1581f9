"""Trainings that are killed while they are validated and tracked: the bits are the same, every step is logged once."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import run as stages
from schemas.toml_text import toml_text
from tests.support.stored import lines
from tests.support.world import ROOT, command, killed_at_random, silent

TRACKED = {"train": {"name": "tracked", "validate_every": 1, "trackers": ["tensorboard"]}}
FILES = ("model.safetensors", "model_ema.safetensors", "manifest.json")
KILLED_WHILE_VALIDATING = """
import os, signal, sys, tomllib
import torch
from schemas.run_file import parse_run
from stages.train import loop

def report(step, news):
    if step == int(sys.argv[2]) and news.get("validating", 0) > 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

run = parse_run(tomllib.load(open(sys.argv[1], "rb")), "test")
loop.train(run, rank=0, world=1, device=torch.device("cpu"), report=report)
"""


@pytest.fixture(autouse=True)
def accumulator():
    return pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs deit-pipeline[tensorboard]"
    )


def check(workspace: str, undisturbed: str, accumulator) -> None:
    """The bytes are those of a run that nobody killed, and TensorBoard has each number of each line once."""
    folder = Path(workspace, "runs/tracked")
    for file in FILES:
        assert (folder / file).read_bytes() == Path(workspace, "runs", undisturbed, file).read_bytes(), file
    found = lines(workspace, "tracked")
    assert [line for line in found if "loss" in line] == lines(workspace, undisturbed)
    validated = [line["step"] for line in found if "val_images" in line]
    assert validated == list(range(3, found[-1]["step"] + 1, 3))
    (events,) = (folder / "tensorboard").iterdir()
    shown = accumulator.EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload()
    keys = dict.fromkeys(key for line in found for key in line if key != "step")
    assert keys.keys() <= set(shown.Tags()["scalars"]) and {"loss", "val_class_top1"} <= keys.keys()
    for key in keys:
        steps = [line["step"] for line in found if key in line]
        assert [one.step for one in shown.Scalars(key)] == steps, key


def test_a_training_that_is_killed_in_the_middle_of_validations_ends_as_one_that_is_not(copied, accumulator):
    run = copied(TRACKED)
    file = Path(run.workspace).parent / "run.toml"
    file.write_text(toml_text(run))
    for step in (6, 12):  # the last one holds the model back as well
        arguments = [sys.executable, "-c", KILLED_WHILE_VALIDATING, str(file), str(step)]
        assert subprocess.run(arguments, cwd=ROOT, timeout=300, check=False).returncode == -signal.SIGKILL
        assert Path(run.workspace, f"runs/tracked/checkpoints/step-{step:09d}").is_dir()
        assert not Path(run.workspace, f"runs/tracked/validations/step-{step:09d}.json").exists()
    assert not Path(run.workspace, "runs/tracked/manifest.json").exists()
    assert stages.train(run, silent)["resumed_from_step"] == 12
    check(run.workspace, "student", accumulator)


@pytest.mark.thorough
def test_a_tracked_training_that_is_killed_twenty_times_logs_every_step_once(copied, tmp_path, accumulator):
    longer = {"train": {"epochs": 40, "reuse_views": True}}
    run = copied(TRACKED, longer)
    stages.train(copied_again(run, {"name": "undisturbed", "validate_every": 0, "trackers": ()}), silent)
    folder = Path(run.workspace, "runs/tracked/validations")
    killed_at_random(
        command("train", config=run, folder=tmp_path), 20, lambda: len(list(folder.glob("step-*.json"))), 40
    )
    assert not Path(run.workspace, "runs/tracked/manifest.json").exists()
    stages.train(run, silent)
    check(run.workspace, "undisturbed", accumulator)


def copied_again(run, changes):
    return run.model_copy(update={"train": run.train.model_copy(update=changes)})
