"""Real commands that are stopped by a signal, with and without Ray, or whose embedded Ray loses a process."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.commands import run as stages
from tests.support.nodes import below, read_process
from tests.support.stopping import KEPT, LONG, STOPPED, newest
from tests.support.stored import receipts
from tests.support.world import command, silent, start, wait_until

pytestmark = pytest.mark.slow


def check_ended(process, folder: Path, line: str = STOPPED) -> None:
    """A command that was stopped says so in its last line and its object, exits with 3 and leaves no lease."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert json.loads(out) == {"error": line, "exit_code": 3}
    assert err.splitlines()[-1] == f"deit-pipeline: {line}"
    assert not list(Path(folder, "leases").glob("*.json"))


@pytest.mark.parametrize(
    ("number", "cluster"),
    [
        (signal.SIGTERM, {"address": "inline"}),
        (signal.SIGINT, {"address": "inline"}),
        (signal.SIGTERM, {"address": "local", "devices": 2}),
        pytest.param(signal.SIGINT, {"address": "local"}, marks=pytest.mark.thorough),
    ],
)
def test_a_command_that_is_stopped_exits_3_and_has_lost_no_step(copied, tmp_path, number, cluster):
    run = copied(LONG, {"train": {"name": "long", "workers": 1}, "cluster": cluster})
    folder = Path(run.workspace, "runs/long")
    process = start(command("train", "--json", config=run, folder=tmp_path))
    try:
        wait_until(process, lambda: receipts(folder), seconds=300)
        os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
        check_ended(process, folder)
    finally:
        process.kill()
    step = newest(run.workspace, "long")
    assert 40 < step < 2400
    if "devices" not in cluster:
        undisturbed = copied(LONG, {"train": {"name": "calm", "max_steps": step, "checkpoint_every": 9999}})
        stages.train(undisturbed, silent)
        part = f"checkpoints/step-{step:09d}"
        for file in (folder / part).iterdir():
            assert file.read_bytes() == (folder.parent / "calm" / part / file.name).read_bytes()
    result = stages.train(copied(LONG, {"train": {"name": "long", "max_steps": step + 1}}), silent)
    assert (result["resumed_from_step"], result["steps"]) == (step, step + 1)


AS_SOON_AS_RAY_HAS_ITS_HANDLERS = """
import atexit, os, signal, time
import cli
from pipeline.execution import ray_session

def hooked(ray, folder):
    worker = ray._private.worker
    connect = worker.connect
    worker.connect = lambda *a, **k: (connect(*a, **k), os.kill(os.getpid(), signal.SIGTERM))
    embed(ray, folder)

embed, ray_session._start_local = ray_session._start_local, hooked
atexit.register(time.sleep, 4)  # the one in C aborts the process three seconds after the signal
cli.main()
"""


@pytest.mark.parametrize(
    ("verb", "made", "line"),
    [
        ("train", "runs/new", STOPPED),
        pytest.param(
            "shard",
            "shards/train",
            KEPT,
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_signal_while_ray_starts_exits_3_as_well(copied, tmp_path, verb, made, line):
    run = copied({"train": {"name": "new"}, "cluster": {"address": "local"}})
    folder = Path(run.workspace, made)
    shutil.rmtree(folder, ignore_errors=True)
    python, option, _, *arguments = command(verb, "--json", config=run, folder=tmp_path)
    process = start([python, option, AS_SOON_AS_RAY_HAS_ITS_HANDLERS, *arguments])
    try:
        check_ended(process, folder, line)
    finally:
        process.kill()
    assert not receipts(folder)


FOR_LONG = LONG | {"train": LONG["train"] | {"name": "long", "workers": 1}}


@pytest.mark.parametrize(
    ("lost", "called", "verb", "made", "change"),
    [
        ("raylet", "its raylet process", "label-teacher", "labels/long", {"labels": {"views": 600, "name": "long"}}),
        pytest.param(
            "gcs_server", "its gcs_server process", "train", "runs/long", FOR_LONG, marks=pytest.mark.thorough
        ),
        ("TrainController", "the process that controls the training", "train", "runs/long", FOR_LONG),
    ],
)
def test_an_embedded_ray_that_loses_a_process_of_its_own_ends_in_a_line(
    copied, tmp_path, lost, called, verb, made, change
):
    run = copied(change, {"cluster": {"address": "local"}})
    folder, semaphores = Path(run.workspace, made), set(Path("/dev/shm").glob("sem.deit-ray-*"))
    process = start(command(verb, "--json", config=run, folder=tmp_path))
    try:
        wait_until(process, lambda: receipts(folder), seconds=300)
        (pid,) = [pid for pid in below(process.pid) if lost in read_process(pid, "cmdline").split("\0")[0]]
        os.kill(pid, signal.SIGKILL)
        more = " from the newest checkpoint" if lost == "TrainController" else ""
        line = f"the embedded Ray lost {called}, as when memory runs out; rerun the same command to resume{more}"
        check_ended(process, folder, line)
    finally:
        process.kill()
    assert set(Path("/dev/shm").glob("sem.deit-ray-*")) <= semaphores
