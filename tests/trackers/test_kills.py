"""Trainings killed while they are validated and tracked: every step is logged once, and the bits are the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import run as stages
from schemas.toml_text import toml_text
from tests.support.stored import lines
from tests.support.world import ROOT, command, killed_at_random, silent

TRACKED = {"train": {"name": "tracked", "validate_every": 1, "trackers": ["tensorboard"]}}
FILES = ("model.safetensors", "model_ema.safetensors", "manifest.json", "checkpoints/step-000000012/state.safetensors")
KILLED_WHILE_VALIDATING = """
import os, signal, sys, tomllib
import torch
from schemas.config import parse_run
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


def check(run, whole, accumulator) -> None:
    """Of the run, the bytes are those of one that nobody killed, and TensorBoard has each number of each line once."""
    folder, undisturbed = Path(run.workspace, "runs/tracked"), Path(whole.workspace, "runs/student")
    for file in FILES:
        assert (folder / file).read_bytes() == (undisturbed / file).read_bytes(), file
    found = lines(run.workspace, "tracked")
    assert [line for line in found if "loss" in line] == lines(whole.workspace)
    assert [line["step"] for line in found if "val_images" in line] == [3, 6, 9, 12]
    (events,) = (folder / "tensorboard").iterdir()
    shown = accumulator.EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload()
    keys = dict.fromkeys(key for line in found for key in line if key != "step")
    assert keys.keys() <= set(shown.Tags()["scalars"]) and {"loss", "val_class_top1"} <= keys.keys()
    for key in keys:
        steps = [line["step"] for line in found if key in line]
        assert [one.step for one in shown.Scalars(key)] == steps, key


def test_a_training_that_is_killed_in_the_middle_of_a_validation_ends_as_one_that_is_not(copied, whole, accumulator):
    run = copied(TRACKED)
    file = Path(run.workspace).parent / "run.toml"
    file.write_text(toml_text(run))
    step = [sys.executable, "-c", KILLED_WHILE_VALIDATING, str(file), "6"]
    assert subprocess.run(step, cwd=ROOT, timeout=300, check=False).returncode == -9
    assert Path(run.workspace, "runs/tracked/checkpoints/step-000000006").is_dir()
    assert not Path(run.workspace, "runs/tracked/validations/step-000000006.json").exists()
    assert stages.train(run, silent)["resumed_from_step"] == 6
    check(run, whole, accumulator)


@pytest.mark.slow
def test_a_tracked_training_that_is_killed_at_random_moments_logs_every_step_once(
    copied, whole, tmp_path, kills, accumulator
):
    run = copied(TRACKED, {"train": {"checkpoint_every": 3}})
    folder = Path(run.workspace, "runs/tracked/validations")

    def done() -> int:
        return len(list(folder.glob("step-*.json")))

    killed_at_random(command("train", config=run, folder=tmp_path), min(kills, 2), done, 4)
    stages.train(run, silent)
    check(run, whole, accumulator)
