"""Ray makes what this process would make, and a lost worker, a lost driver or a user's error each end as they should.

Slow (Ray takes seconds to start), hence one embedded Ray for all tests here, and one story for all stages.
"""

import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline.commands import run as stages
from pipeline.execution.failures import Failures
from pipeline.execution.ray_executor import RayExecutor
from pipeline.execution.ray_session import Resources, ray_session
from pipeline.execution.run_parts import make_parts
from pipeline.execution.stage_dir import open_stage
from pipeline.execution.worker import Job, Worker
from schemas.config import ClusterConfig
from schemas.errors import UserError
from schemas.receipts import PartOutput
from stages.shard.plan import ShardSpec
from stages.storage.commit import valid_receipts
from stages.storage.store import Store
from tests.support.stored import kill_when, left, receipts
from tests.support.world import command, run_file, silent, stored

pytestmark = pytest.mark.cluster

CLUSTER = ClusterConfig(address="local")
SPECS = [ShardSpec(number, ()) for number in range(6)]


@pytest.fixture(scope="module", autouse=True)
def ray():
    with ray_session(CLUSTER) as ray:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield ray


def fail_once(how, folder: str):
    """What makes parts, of which number 3 fails as told, the first time or always."""

    def make(spec: ShardSpec, staging: Path) -> PartOutput:
        mark = Path(folder, "failed")
        if spec.shard == 3 and ("always" in how or not mark.exists()):
            mark.touch()
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "always killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "refused":
                raise UserError("3: the user's own mistake")
            raise RuntimeError("a flaky disk")
        return PartOutput(files={f"{spec.name}.txt": str(spec.shard).encode()}, rows=1, facts={})

    return make


def make_all(tmp_path: Path, how: str, done: list, attempts: int = 2, **settings) -> Store:
    store = Store(str(tmp_path / "parts"))
    cluster = CLUSTER.model_copy(update={"attempts": attempts} | settings)
    job = Job(open_stage(store, {}, {}, ""), partial(fail_once, how, str(tmp_path)))
    make_parts(job, SPECS, wanted=len(SPECS), cluster=cluster, resources=Resources(count=2, cpus=1), done=done.append)
    return store


@pytest.mark.parametrize("how", ["raised", "killed"])
def test_a_part_that_was_lost_is_made_again(tmp_path, how, capsys):
    done = []
    store = make_all(tmp_path, how, done, attempts=3)
    assert (tmp_path / "failed").exists()
    assert sorted(receipt.part for receipt in done) == sorted(valid_receipts(store)) == [spec.name for spec in SPECS]
    assert "warning: shard-000003 is tried again (" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["local", "inline"])
def test_a_part_that_always_fails_is_put_aside_with_its_traceback_until_it_is_asked_for(
    tmp_path, refused, capsys, address
):
    done, others = [], [spec.name for spec in SPECS if spec.shard != 3]
    line = refused(make_all, tmp_path, "always", done, code=3, address=address)
    store = Store(str(tmp_path / "parts"))
    assert line == (
        "1 parts failed (shard-000003: RuntimeError: a flaky disk), all others are done; their tracebacks are in "
        f"{store}/failures; the same command with --retry-failed tries them again"
    )
    assert sorted(receipt.part for receipt in done) == others
    record = json.loads(store.read("failures/shard-000003.json"))
    assert (record["attempts"], record["cause"]) == (2, "RuntimeError: a flaky disk")
    assert any("in make" in line for line in record["traceback"])
    assert capsys.readouterr().err.count("is tried again") == 1

    again = []
    assert refused(make_all, tmp_path, "never", again, code=3, address=address) == line
    assert "shard-000003" not in [receipt.part for receipt in again]
    assert "--retry-failed tries them again" in capsys.readouterr().err.splitlines()[0]

    make_all(tmp_path, "never", again, address=address, retry_failed=True)
    assert Failures(store).read() == {} and "shard-000003" in valid_receipts(store)


def test_a_part_that_kills_its_process_is_put_aside_and_the_part_queued_behind_it_is_not(tmp_path, refused):
    done = []
    line = refused(make_all, tmp_path, "always killed", done, code=3)
    assert line.startswith("1 parts failed (shard-000003: ")
    assert sorted(receipt.part for receipt in done) == [spec.name for spec in SPECS if spec.shard != 3]


def test_a_node_that_does_not_see_the_storage_is_refused_even_where_an_old_workspace_lies_at_its_path(
    ray, tmp_path, refused
):
    job = Job(open_stage(Store(str(tmp_path)), {}, {}, ""), partial(fail_once, "never", str(tmp_path)))
    with job.stage_dir.hold_lease(len(SPECS)) as lease:
        RayExecutor(ray, Worker(job, lease.path), Resources(count=1, cpus=1), 1).close()
    assert (tmp_path / "plan.json").exists()
    actors = RayExecutor(ray, Worker(job, lease.path), Resources(count=1, cpus=1), 1)
    line = refused(lambda: [actors.poll(1) for _ in range(60)])
    actors.close()
    assert line.startswith(f"{tmp_path}/{lease.path}: node ") and " does not see it" in line


def test_a_users_error_is_not_tried_again_and_stays_one_line(tmp_path, refused):
    done = []
    assert refused(make_all, tmp_path, "refused", done) == "3: the user's own mistake"
    assert "shard-000003" not in [receipt.part for receipt in done]


def test_a_worker_that_could_never_start_is_refused_and_not_waited_for(tmp_path, refused):
    job = Job(open_stage(Store(str(tmp_path)), {}, {}, ""), partial(fail_once, "never", str(tmp_path)))
    resources = Resources(count=1, cpus=999)
    line = refused(make_parts, job, SPECS, wanted=len(SPECS), cluster=CLUSTER, resources=resources, done=print)
    assert line.startswith("a worker needs 999 CPU, the cluster has ")


def test_a_training_that_lost_no_process_raises_the_users_error_as_it_is(copied, refused):
    wild = {"train": {"name": "wild", "lr": 1e30, "warmup_lr": 1e30}, "cluster": {"address": "local"}}
    assert refused(stages.train, copied(wild), silent).startswith("the loss of step 1 is not finite")


def test_the_whole_way_survives_a_sigkill_in_every_stage_and_equals_the_way_without_ray(whole, many_images, tmp_path):
    settings = {
        "source": {"val": ""}, "shards": {"samples_per_shard": 4}, "labels": {"views": 4, "passes_per_part": 1},
        "student": {"drop_path": 0.0},  # whose draws are each rank's own
        "train": {"max_steps": 60, "log_every": 10, "checkpoint_every": 6},
    }  # fmt: skip
    under_ray = {"cluster": {"address": "local", "devices": 2}}
    killed = run_file(tmp_path / "killed", many_images, settings, under_ray)
    undisturbed = run_file(tmp_path / "undisturbed", many_images, settings)
    for run in (killed, undisturbed):
        shutil.copytree(Path(whole.workspace, "runs/teacher"), Path(run.workspace, "runs/teacher"))

    for folder in ("shards/train", "labels/teacher", "runs/student"):
        kill_when(command("run", config=killed, folder=tmp_path), lambda at=folder: receipts(tmp_path / "killed" / at))
        assert not (tmp_path / "killed" / folder / "manifest.json").exists()
    trained = stages.everything(killed, silent)["stages"][-1]
    # a killed command's trainers go on until they notice, at worst to the last step
    assert 6 <= trained["resumed_from_step"] <= trained["steps"] == 60

    stages.everything(undisturbed, silent)
    for folder in ("shards", "labels"):
        assert left(tmp_path / "killed" / folder) == stored(tmp_path / "undisturbed" / folder)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "runs/student/metrics.jsonl").read_text().splitlines()]
        for name in ("killed", "undisturbed")
    ]
    for two_workers, one in zip(*lines, strict=True):
        for key in ("step", "epoch", "lr", "loss", "class_loss", "teacher_loss"):
            assert two_workers[key] == pytest.approx(one[key], rel=1e-3), f"{key} at step {one['step']}"
