"""Whatever ends a stage, the same command resumes it and ends with the bytes of an undisturbed run.

Two ways to end one: in this process, at every single write it makes; and a real process, by SIGKILL, while it works.
"""

import multiprocessing
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from pipeline.commands import run as stages
from stages.storage import disk
from stages.train.trainer import Trainer
from tests.support.stored import kill_when, left, lines, receipts
from tests.support.world import PAIRS, command, killed_at_random, run_file, silent, start, stored, wait_until

pytestmark = pytest.mark.slow

THOROUGH_MOMENTS = [0, *(pytest.param(one, marks=pytest.mark.thorough) for one in range(1, 30))]
"""Seeds of the moments at which something is killed."""


class PowerCut(BaseException):
    """Nothing below the test catches it."""


def cut_at(monkeypatch, put: int) -> None:
    """End everything at the n-th file put, before it is renamed into place: its hidden half is left behind."""
    puts = iter(range(put + 1))
    whole = disk.put_on_disk

    def cut(target, content):
        if next(puts) < put:
            return whole(target, content)
        data = content if isinstance(content, bytes) else content.read_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_name(f".{target.name}.0{disk.TEMPORARY_SUFFIX}").write_bytes(data[: len(data) // 2])
        raise PowerCut

    monkeypatch.setattr(disk, "put_on_disk", cut)


def interrupt_at_every_write(monkeypatch, run, stage, folder: Path, truth: dict[str, bytes], same) -> int:
    """Cut a stage off at its first write, then at its second, and so on; return how many there were."""
    for put in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        with monkeypatch.context() as patch:
            cut_at(patch, put)
            try:
                stage(run, silent)
                return put
            except PowerCut:
                pass
        stage(run, silent)
        assert same(left(folder), truth), f"cut at write {put}"
    raise AssertionError("the stage never ended")


def test_shards_are_the_same_bytes_wherever_their_making_was_cut_off(fresh, whole, monkeypatch):
    run = fresh()
    folder, truth = Path(run.workspace, "shards"), stored(Path(whole.workspace, "shards"))
    cuts = interrupt_at_every_write(monkeypatch, run, stages.shard, folder, truth, dict.__eq__)
    # every file once: nothing is written twice; each split's lease; and for each part its hours
    assert cuts == len(truth) + 2 + sum("/receipts/" in name for name in truth)


def test_labels_are_the_same_bytes_wherever_their_making_was_cut_off(copied, whole, monkeypatch):
    folder, truth = Path(copied().workspace, "labels"), stored(Path(whole.workspace, "labels"))
    cuts = interrupt_at_every_write(monkeypatch, copied(), stages.label, folder, truth, dict.__eq__)
    assert cuts == len(truth) + 1 + sum("/receipts/" in name for name in truth)  # a lease, and each part's hours


def test_weights_and_metrics_are_the_same_bits_wherever_training_was_cut_off(copied, whole, monkeypatch):
    run = copied()
    folder = Path(run.workspace, "runs/student")
    truth = stored(Path(whole.workspace, "runs/student"))
    models = [name for name in truth if name.endswith(".safetensors")]
    assert len(models) == 2 * 3 + 2

    def same(found: dict[str, bytes], truth: dict[str, bytes]) -> bool:
        assert found.keys() | {"evaluation.json"} == truth.keys()
        assert lines(run.workspace) == lines(whole.workspace)
        return all(found[name] == truth[name] for name in [*models, "manifest.json", "plan.json"])

    assert interrupt_at_every_write(monkeypatch, run, stages.train, folder, truth, same) > 20


EVENTS = 12 * 2 + 4 * 6
"""About how often an undisturbed training begins or ends a step, or puts a file."""


def train_until(run, events: int) -> None:
    """In a process of its own: train, and end by SIGKILL at the n-th beginning or end of a step or of a file put."""
    left = iter(range(events))

    def counted(call):
        def wrapped(*arguments):
            for moment in ("begin", "end"):
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                if moment == "begin":
                    result = call(*arguments)
            return result

        return wrapped

    Trainer.step, disk.put_on_disk = counted(Trainer.step), counted(disk.put_on_disk)
    stages.train(run, silent)


@pytest.mark.parametrize("seed", THOROUGH_MOMENTS)
def test_training_killed_again_and_again_at_random_moments_ends_with_the_same_bits_and_metrics(copied, whole, seed):
    run, random = copied(), np.random.default_rng(seed)
    folder = Path(run.workspace, "runs/student")
    shutil.rmtree(folder)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.commands.run"])
    for events in random.integers(8, EVENTS // 2, 3).tolist():
        process = context.Process(target=train_until, args=(run, events))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    stages.train(run, silent)
    for name in ("model.safetensors", "model_ema.safetensors", "manifest.json"):
        assert (folder / name).read_bytes() == Path(whole.workspace, "runs/student", name).read_bytes()
    assert lines(run.workspace) == lines(whole.workspace)


@pytest.fixture
def many(many_images, tmp_path):
    """Run files that make 122 shards."""
    return lambda workspace, *changes: run_file(tmp_path / workspace, many_images, PAIRS, *changes)


def test_sharding_killed_in_the_middle_ends_with_the_bytes_of_an_undisturbed_run(many, tmp_path):
    folder = tmp_path / "killed/shards/train"
    kill_when(command("shard", config=many("killed"), folder=tmp_path), lambda: receipts(folder))
    done = len(receipts(folder))
    assert 0 < done < 122 and not (folder / "manifest.json").exists()
    result = stages.shard(many("killed"), silent)["splits"]["train"]
    assert result["new_parts"] == 122 - done
    stages.shard(many("undisturbed"), silent)
    assert stored(folder) == stored(tmp_path / "undisturbed/shards/train")


def test_sharding_killed_at_random_moments_ends_with_the_same_bytes_and_no_stray_shard(many, tmp_path, kills):
    folder = tmp_path / "killed/shards/train"
    killed_at_random(
        command("shard", config=many("killed"), folder=tmp_path), kills, lambda: len(receipts(folder)), 122
    )
    assert not (folder / "manifest.json").exists()
    stages.shard(many("killed"), silent)
    stages.shard(many("undisturbed"), silent)
    assert stored(folder) == stored(tmp_path / "undisturbed/shards/train")
    assert len(list(folder.glob("*.tar"))) == len(list(folder.glob("[!.]*.tar"))) == 122


def test_two_commands_at_once_end_with_the_bytes_of_one(many, tmp_path):
    arguments = command("shard", "--json", config=many("both"), folder=tmp_path)
    processes = [start(arguments), start(arguments)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    stages.shard(many("undisturbed"), silent)
    assert stored(tmp_path / "both/shards") == stored(tmp_path / "undisturbed/shards")


def test_training_killed_in_the_middle_ends_with_the_bits_of_an_undisturbed_run(copied, whole, tmp_path):
    run = copied({"train": {"max_steps": 12}})
    folder = Path(run.workspace, "runs/student")
    shutil.rmtree(folder)
    kill_when(command("train", config=run, folder=tmp_path), lambda: receipts(folder))
    assert not (folder / "manifest.json").exists()
    result = stages.train(run, silent)
    assert 3 <= result["resumed_from_step"] < 12
    for name in ("model.safetensors", "model_ema.safetensors", "manifest.json"):
        assert (folder / name).read_bytes() == Path(whole.workspace, "runs/student", name).read_bytes()
    assert lines(run.workspace) == lines(whole.workspace)


def test_two_trainings_of_one_run_at_once_end_with_the_bits_and_the_metrics_of_one(copied, tmp_path):
    long = {"train": {"epochs": 20, "reuse_views": True, "log_every": 1}}
    stages.train(copied(long, {"train": {"name": "undisturbed"}}), silent)
    run = copied(long, {"train": {"name": "both", "checkpoint_every": 1, "keep_checkpoints": 1}})
    processes = [start(command("train", config=run, folder=tmp_path)) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "passed over" not in errors
    truth, folder = (Path(run.workspace, "runs", name) for name in ("undisturbed", "both"))
    for name in ("model.safetensors", "model_ema.safetensors", "manifest.json"):
        assert (folder / name).read_bytes() == (truth / name).read_bytes()
    assert lines(run.workspace, "both") == lines(run.workspace, "undisturbed")
    assert os.listdir(folder / "checkpoints") == ["step-000000060"]


def test_lines_that_a_killed_command_took_from_a_finished_run_come_back_with_the_next(copied, whole):
    run = copied()
    file = Path(run.workspace, "runs/student/metrics.jsonl")
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    stages.train(run, silent)
    assert lines(run.workspace) == lines(whole.workspace)


@pytest.fixture(scope="session")
def undisturbed(images, whole, tmp_path_factory):
    """Labels in 48 parts, made at once: what is left of each killed labelling has to come to these bytes."""
    workspace = tmp_path_factory.mktemp("undisturbed") / "workspace"
    run = run_file(workspace, images, {"shards": {"samples_per_shard": 4}, "labels": {"passes_per_part": 1}})
    stages.shard(run, silent)
    shutil.copytree(Path(whole.workspace, "runs/teacher"), workspace / "runs/teacher")
    stages.label(run, silent)
    return workspace


@pytest.mark.parametrize("address", ["inline", "local"])
@pytest.mark.parametrize("moment", THOROUGH_MOMENTS)
def test_labels_killed_at_a_random_moment_end_with_the_bytes_of_an_undisturbed_run(
    undisturbed, images, tmp_path, moment, address
):
    workspace = undisturbed
    for made in ("shards", "runs"):
        shutil.copytree(workspace / made, tmp_path / "workspace" / made)
    changes = {"shards": {"samples_per_shard": 4}, "labels": {"passes_per_part": 1}, "cluster": {"address": address}}
    run = run_file(tmp_path / "workspace", images, changes)
    folder = tmp_path / "workspace/labels/teacher"
    process = start(command("label-teacher", config=run, folder=tmp_path))
    try:
        parts = random.Random(f"{address} {moment}").randrange(1, 44)  # by work done: the clock mostly misses it
        wait_until(process, lambda: len(receipts(folder)) >= parts)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = len(receipts(folder))  # a Ray actor that outlives its command for a moment may still add one
    print(f"killed with {done} parts done")
    assert parts <= done < 48 and not (folder / "manifest.json").exists()
    result = stages.label(run_file(tmp_path / "workspace", images, changes, {"cluster": {"address": "inline"}}), silent)
    assert result["new_parts"] <= result["parts"] - done
    assert left(folder) == stored(workspace / "labels/teacher")
