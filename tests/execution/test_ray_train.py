"""Training through Ray Train: a lost worker, fewer workers, too few devices."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.commands import run as stages
from pipeline.execution.ray_session import ray_session
from pipeline.execution.ray_train import launch_training
from pipeline.execution.stage_dir import open_stage
from schemas.errors import last_line
from stages.data.split import Split
from stages.storage.store import Store
from stages.train.plan import Plan
from tests.support.stored import lines, receipts
from tests.support.world import silent

pytestmark = pytest.mark.cluster

STEADY = {
    "student": {"drop_path": 0.0},
    "train": {"epochs": 40, "warmup_epochs": 0, "lr": 0.003, "reuse_views": True, "keep_checkpoints": 50},
}
BY_TWO = {"cluster": {"address": "local", "devices": 2}}


def training_processes() -> list[int]:
    """Ids of the processes that this one's Ray trains in."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue  # it has ended meanwhile
    mine = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sorted(child for child in mine if "RayTrainWorker" in titles.get(child, ""))


def kill_one_once(seen, killed: list[int], over: threading.Event) -> None:
    while not over.is_set():
        if seen() and (training := training_processes()):
            os.kill(training[-1], signal.SIGKILL)
            killed.append(training[-1])
            return
        time.sleep(0.005)


def test_two_workers_one_killed_end_with_the_bits_of_two_and_a_single_one_goes_on_along_the_stream(
    copied, tmp_path, capsys
):
    undisturbed = copied(STEADY, {"train": {"name": "undisturbed", "max_steps": 72}})
    stages.train(undisturbed, silent)
    stages.train(copied(STEADY, BY_TWO, {"train": {"name": "by-two", "max_steps": 60}}), silent)
    folder, killed, over = Path(undisturbed.workspace, "runs/student"), [], threading.Event()
    for file in [*folder.rglob("*.*")]:
        file.unlink()
    killer = threading.Thread(target=kill_one_once, args=(lambda: receipts(folder), killed, over))
    killer.start()
    try:
        result = stages.train(copied(STEADY, BY_TWO, {"train": {"max_steps": 60}}), silent)
    finally:
        over.set()
        killer.join()
    assert len(killed) == 1 and "training is started again from its newest checkpoint" in capsys.readouterr().err
    assert result["steps"] == 60 and 3 <= result["resumed_from_step"] < 60
    for file in ("model.safetensors", "model_ema.safetensors", "manifest.json"):
        assert (folder / file).read_bytes() == (folder.parent / "by-two" / file).read_bytes()
    assert lines(undisturbed.workspace) == lines(undisturbed.workspace, "by-two")
    result = stages.train(copied(STEADY, {"train": {"max_steps": 72}}), silent)
    assert result["resumed_from_step"] == 60
    walked = lines(undisturbed.workspace)
    truth = lines(undisturbed.workspace, "undisturbed")
    assert [line["step"] for line in walked] == list(range(2, 74, 2))
    for line, true in zip(walked, truth, strict=True):
        assert line == pytest.approx(true, rel=2e-3)
    weights, true_weights = (
        load_file(folder.parent / name / "model.safetensors") for name in ("student", "undisturbed")
    )
    for name, value in true_weights.items():
        torch.testing.assert_close(weights[name], value, atol=2e-3, rtol=0)


def test_more_workers_than_the_cluster_can_seat_are_refused_in_one_line(copied, refused):
    many = {"cluster": {"address": "local", "devices": 4096}, "train": {"name": "many", "batch_size": 8192}}
    run = copied(many, {"train": {"distillation": "none"}, "views": {"repeats": 2}})
    with ray_session(run.cluster) as ray:
        cpus = ray.cluster_resources()["CPU"]
        stage_dir = open_stage(Store(str(Path(run.workspace, "runs/many"))), {}, {}, "")
        line = refused(launch_training, run, Plan(Split.open(run.workspace, "train"), None, 1, 1, {}), stage_dir, 0)
    assert line.startswith(f"training with 4096 workers needs 4096 CPU, the cluster has {cpus:g}; lower ")


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_started(copied, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(stages.train, copied({"cluster": {"address": "local", "device": "cuda"}}), silent)
    assert line.startswith('cluster.device = "cuda": this machine has no CUDA device')


def test_a_cluster_whose_gpus_this_machine_cannot_count_is_refused_in_one_line(copied, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = refused(stages.train, copied({"cluster": {"address": "somewhere:6379", "device": "cuda"}}), silent)
    assert line.startswith("cluster.devices = 0: counts this machine's GPUs")


def test_an_error_that_says_nothing_is_called_by_its_kind():
    assert last_line(AssertionError()) == "AssertionError"
    assert last_line(OSError("first\ns3://key:secret@bucket/x: gone")) == "s3://bucket/x: gone"
