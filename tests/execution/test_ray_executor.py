"""Workers on Ray without Ray: a driver that waits does not spin, and workers that never start end the command."""

from types import SimpleNamespace

import pytest

from pipeline.execution import ray_executor
from pipeline.execution.ray_executor import RayExecutor
from pipeline.execution.ray_session import Resources
from pipeline.execution.scheduler import WorkerLost
from pipeline.execution.stage_dir import open_stage
from pipeline.execution.worker import Job, Worker
from schemas.errors import UserError
from schemas.receipts import PartOutput, Receipt
from stages.shard.plan import ShardSpec
from stages.storage.commit import commit
from stages.storage.store import Store

SPEC = ShardSpec(0, ())
MADE = Receipt(part=SPEC.name, files=(), rows=1, made_by="me", facts={})


class RayError(Exception):
    """What Ray's errors are."""


class ActorDiedError(RayError):
    """An actor is gone."""


class OtherError(RayError):
    """Those that no test here raises."""


class Ray:
    """Settles workers as the script says, then as its last word says; makes all parts; `killed` counts."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=OtherError, ActorDiedError=ActorDiedError,
        OutOfMemoryError=OtherError, WorkerCrashedError=OtherError,
    )  # fmt: skip

    def __init__(self, *script) -> None:
        self.script, self.started, self.killed, self.waits = list(script), 0, 0, 0

    def cluster_resources(self):
        return {"CPU": 2.0}

    def remote(self, **needs):
        return lambda worker: SimpleNamespace(remote=self._actor)

    def _actor(self, job, proof, folder, sockets):
        outcome = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.started += 1
        methods = [SimpleNamespace(remote=lambda *_, it=it: Reference(it)) for it in (outcome, MADE)]
        return Actor(*methods)

    def wait(self, references, num_returns, timeout):
        assert references, "Ray returns at once"
        self.waits += 1
        return references, []

    def get(self, reference):
        if isinstance(reference.value, RayError):
            raise reference.value
        return reference.value

    def kill(self, actor):
        self.killed += 1


class Reference:
    """To a value."""

    def __init__(self, value) -> None:
        self.value = value


class Actor:
    """A worker's handle."""

    def __init__(self, check_storage, run) -> None:
        self.check_storage, self.run = check_storage, run


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only while somebody sleeps; what was slept."""
    slept = []
    monkeypatch.setattr(ray_executor, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    return slept


def actors(ray: Ray, tmp_path, count: int = 1) -> RayExecutor:
    return RayExecutor(
        ray,
        Worker(Job(open_stage(Store(str(tmp_path)), {}, {}, ""), lambda: None), ""),
        Resources(count=count, cpus=1),
        9,
    )


def test_a_driver_whose_workers_are_all_idle_sleeps(clock, tmp_path):
    hands = actors(Ray(None), tmp_path)
    assert hands.poll(0.5) == [] and clock == []  # the worker started
    hands.submit(SPEC)
    assert hands.poll(0.5) == [(SPEC, MADE)] and clock == []
    assert hands.poll(0.5) == [] and clock == [0.5]


def test_a_worker_that_dies_at_its_start_is_replaced_later_each_time_and_not_for_ever(clock, tmp_path, refused, capsys):
    ray = Ray(ActorDiedError("a long story\nkilled for its memory"))
    hands = actors(ray, tmp_path)

    def wait():
        while True:
            hands.poll(0.5)

    line = refused(wait, code=3)
    assert line == (
        "no worker can start: 8 processes, one after the other, died at their start (killed for its memory); "
        "rerun the same command to resume"
    )
    assert ray.started == 8 and sum(clock) == 2 + 4 + 8 + 16 + 30 + 30 + 30
    warned = capsys.readouterr().err.splitlines()
    assert warned[0] == "warning: a worker died at its start (killed for its memory); another in 2 s"


def test_workers_that_a_node_takes_with_it_at_their_start_are_one_accident(clock, tmp_path, capsys):
    ray = Ray(*[ActorDiedError("the node has died")] * 9, None)
    hands = actors(ray, tmp_path, count=9)
    while not hands.free():
        hands.poll(0.5)
    assert ray.started == 17 and sum(clock) == 1
    assert capsys.readouterr().err.count("another in 1 s") == 8


def test_a_node_that_refuses_to_work_ends_nothing_while_others_work(clock, tmp_path, refused, capsys):
    ray = Ray(None, UserError("plan.json: node b does not see it"))
    hands = actors(ray, tmp_path, count=2)
    assert hands.poll(0.5) == [] and ray.killed == 1
    assert capsys.readouterr().err == "warning: plan.json: node b does not see it; going on with 1 workers\n"
    hands.submit(SPEC)
    assert hands.poll(0.5) == [(SPEC, MADE)]
    assert refused(actors(ray, tmp_path).poll, 0.5) == "plan.json: node b does not see it"


@pytest.mark.parametrize("made_by", ["ours", "another's"])
def test_a_part_whose_worker_died_after_its_receipt_was_put_is_not_made_again(clock, tmp_path, made_by):
    hands = actors(Ray(None), tmp_path)
    hands.poll(0.5)
    stage_dir = hands._worker.job.stage_dir
    made = PartOutput(files={"a.txt": b"x"}, rows=1, facts={})
    receipt = commit(stage_dir.store, SPEC.name, made, stage_dir.made_by if made_by == "ours" else made_by)
    hands.submit(SPEC)
    (reference,) = hands._begun
    reference.value = ActorDiedError("killed for its memory")
    ((spec, outcome),) = hands.poll(0.5)
    assert spec == SPEC
    assert outcome == receipt if made_by == "ours" else isinstance(outcome, WorkerLost)
    for damage in (lambda: stage_dir.store.put("a.txt", b"torn"), lambda: stage_dir.store.delete("a.txt")):
        damage()  # the part was to be made again for that, and its old receipt is no proof
        assert hands._committed(SPEC) is None
