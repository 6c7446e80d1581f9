"""On a real cluster of several nodes: the package ships itself, and nodes, workers and drivers may be lost.

Slow, since nodes are real processes: one cluster for all tests here, and `--thorough` for those beyond the first.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import run as stages
from pipeline.commands.verify import verify
from schemas.run_file import load_run_file
from schemas.toml_text import toml_text
from tests.support.nodes import Nodes
from tests.support.stored import left, receipts
from tests.support.world import ROOT, run_file, silent, stored, wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def nodes():
    with Nodes() as nodes:
        yield nodes


@pytest.fixture
def many(images, tmp_path):
    """A run file of 122 shards of 4 images in a workspace that is meant from the command's folder."""
    for copy in range(8):
        for file in (images / "train").rglob("*.*"):
            target = tmp_path / "many/train" / file.parent.name / f"{copy}-{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
    pairs = {"shards": {"samples_per_shard": 4}, "source": {"train": "many/train", "val": ""}}
    pairs |= {"labels": {"views": 4, "passes_per_part": 2}, "cluster": {"cpus": 2, "devices": 2}}
    (tmp_path / "deit.toml").write_text(toml_text(run_file("ws", images, pairs)))
    return tmp_path / "ws", run_file(
        tmp_path / "calm", images, pairs, {"source": {"train": str(tmp_path / "many/train")}}
    )


def drive(
    nodes: Nodes, folder: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A command in its own process, as on a head node."""
    typed = [sys.executable, "-c", "import cli; cli.main()", *arguments, "--json", "--address", nodes.address]
    return subprocess.Popen(
        typed, cwd=folder, env=(environment or nodes.environment) | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out, err


def test_shards_are_made_on_nodes_without_the_package_while_one_is_lost_and_a_worker_killed(nodes, many, tmp_path):
    workspace, calm = many
    folder = workspace / "shards/train"
    process = drive(nodes, tmp_path, "shard")
    wait_until(process, lambda: len(receipts(folder)) >= 5)
    nodes.kill()
    nodes.add()
    wait_until(process, lambda: (folder / "manifest.json").exists() or nodes.workers())
    for worker in nodes.workers()[:1]:
        os.kill(worker, signal.SIGKILL)
    out, err = ended(process)
    assert json.loads(out)["splits"]["train"]["parts"] == 122
    assert "is tried again" in err and "asks for no token" not in err
    stages.shard(calm, silent)
    assert left(folder) == stored(Path(calm.workspace, "shards/train"))
    assert verify(str(workspace))["ok"]


def test_a_driver_killed_on_a_cluster_is_followed_by_one_elsewhere(nodes, many, tmp_path):
    workspace, calm = many
    folder = workspace / "shards/train"
    process = drive(nodes, tmp_path, "shard")
    wait_until(process, lambda: len(receipts(folder)) >= 5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "manifest.json").exists()
    (tmp_path / "elsewhere").mkdir()
    moved = ["-c", str(tmp_path / "deit.toml"), "--set", f"workspace={workspace}"]
    process = drive(nodes, tmp_path / "elsewhere", "shard", *moved, "--set", f"source.train={tmp_path}/many/train")
    out, _ = ended(process)
    assert 0 < json.loads(out)["splits"]["train"]["new_parts"] <= 122 - 5
    stages.shard(calm, silent)
    assert left(folder) == stored(Path(calm.workspace, "shards/train"))


@pytest.fixture
def sharded(many, whole, tmp_path):
    workspace, calm = many
    stages.shard(calm, silent)
    for place in (workspace, Path(calm.workspace)):
        shutil.copytree(Path(whole.workspace, "runs/teacher"), place / "runs/teacher")
    shutil.copytree(Path(calm.workspace, "shards"), workspace / "shards")
    return workspace, calm


@pytest.mark.thorough
def test_a_node_lost_while_labelling_changes_no_byte(nodes, sharded, tmp_path):
    workspace, calm = sharded
    folder = workspace / "labels/teacher"
    process = drive(nodes, tmp_path, "label-teacher")
    wait_until(process, lambda: len(receipts(folder)) >= 5)
    nodes.kill()
    nodes.add()
    ended(process)
    stages.label(calm, silent)
    assert left(folder) == stored(Path(calm.workspace, "labels/teacher"))


@pytest.mark.thorough
def test_a_node_lost_while_training_ends_with_the_weights_of_an_undisturbed_run(nodes, sharded, tmp_path):
    workspace, calm = sharded
    for folder in (workspace, Path(calm.workspace)):
        shutil.rmtree(folder / "runs/student", ignore_errors=True)
    steady = ["train.distillation=none", "train.max_steps=60", "train.checkpoint_every=5", "cluster.devices=1"]
    chosen = [word for one in steady for word in ("--set", one)]
    process = drive(nodes, tmp_path, "train", *chosen)
    folder = workspace / "runs/student"
    wait_until(process, lambda: receipts(folder))
    nodes.kill()
    nodes.add()
    out, _ = ended(process)
    assert json.loads(out)["steps"] == 60
    undisturbed = load_run_file(str(tmp_path / "deit.toml"), [f"workspace={calm.workspace}", *steady])
    stages.train(undisturbed, silent)
    for name in ("model.safetensors", "model_ema.safetensors", "manifest.json"):
        assert (folder / name).read_bytes() == Path(calm.workspace, "runs/student", name).read_bytes()


@pytest.mark.thorough
def test_a_command_stopped_on_a_cluster_finishes_what_is_under_way_and_exits_3(nodes, many, tmp_path):
    workspace, _ = many
    folder = workspace / "shards/train"
    process = drive(nodes, tmp_path, "shard")
    wait_until(process, lambda: len(receipts(folder)) >= 5)
    os.kill(process.pid, signal.SIGTERM)
    _, err = ended(process, 3)
    assert err.splitlines()[-1] == "deit-pipeline: stopped; what is done is kept; rerun the same command to resume"
    assert not list(Path(folder, "leases").glob("*.json"))
    done = len(receipts(folder))
    out, _ = ended(drive(nodes, tmp_path, "shard"))
    assert json.loads(out)["splits"]["train"]["new_parts"] == 122 - done


@pytest.mark.thorough
def test_a_training_stopped_on_a_cluster_keeps_the_step_under_way_of_both_workers_and_goes_on(nodes, sharded, tmp_path):
    workspace, _ = sharded
    folder = workspace / "runs/student"
    steady = ["train.distillation=none", "train.epochs=400", "train.checkpoint_every=40"]
    chosen = [word for one in steady for word in ("--set", one)]
    process = drive(nodes, tmp_path, "train", *chosen)
    wait_until(process, lambda: receipts(folder))
    os.kill(process.pid, signal.SIGTERM)
    _, err = ended(process, 3)
    assert err.splitlines()[-1] == "deit-pipeline: stopped; rerun the same command to resume from the newest checkpoint"
    step = int(receipts(folder)[-1].removeprefix("step-").removesuffix(".json"))
    assert 40 < step < 400 * 30
    out, _ = ended(drive(nodes, tmp_path, "train", *chosen, "--set", f"train.max_steps={step + 1}"))
    assert json.loads(out)["resumed_from_step"] == step


def test_a_cluster_tells_its_own_workers_from_others_of_the_same_name(nodes):
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "raylet"], stdin=subprocess.PIPE)
    try:
        assert len(nodes.workers("raylet")) >= 3 and other.pid not in nodes.workers("raylet")
    finally:
        other.communicate()


def test_nobody_joins_without_the_token(nodes, many, tmp_path):
    environment = nodes.environment | {"RAY_AUTH_TOKEN": "0" * 64}
    _, err = ended(drive(nodes, tmp_path, "shard", environment=environment), 1)
    last = err.splitlines()[-1]
    assert last.startswith(f"deit-pipeline: cluster.address = {nodes.address}: this Ray asks for a token")
    assert receipts(many[0] / "shards/train") == []
