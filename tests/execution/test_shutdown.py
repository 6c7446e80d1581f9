"""SIGTERM and Ctrl-C while training: the step under way is finished and kept, and the same command resumes.

Stopped in this process, at every step and at every moment that is none; in two processes, which have to agree; and as
real commands, with and without Ray. How the other stages stop is in `test_loop.py`.
"""

import multiprocessing
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.commands import run as stages
from pipeline.execution import ray_train
from pipeline.execution.shutdown import GracefulShutdown, keep_signal_handlers
from schemas.errors import IncompleteError, UserError
from stages.train import loop, trainer
from stages.train.stop_sync import StopSync
from stages.train.trainer import Trainer
from tests.support.stopping import STOPPED, newest
from tests.support.stored import lines
from tests.support.world import silent

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def same(workspace: Path | str, name: str, truth: Path) -> bool:
    """Whether a run ended with another's bits."""
    files = ("model.safetensors", "model_ema.safetensors", "manifest.json")
    return all(Path(workspace, "runs", name, file).read_bytes() == (truth / file).read_bytes() for file in files)


def test_a_training_stopped_after_every_single_step_ends_with_the_bits_and_metrics_of_an_undisturbed_one(copied, whole):
    run = copied()
    shutil.rmtree(Path(run.workspace, "runs/student"))
    for done in range(12):
        result = loop.train(run, rank=0, world=1, device=CPU, report=lambda step, _, done=done: step > done)
        assert (result["resumed_from_step"], result["steps"], newest(run.workspace)) == (done, done + 1, done + 1)
    assert same(run.workspace, "student", Path(whole.workspace, "runs/student"))
    assert lines(run.workspace) == lines(whole.workspace)


def signalled(monkeypatch, where: str, signals: int = 1) -> None:
    """Send SIGTERM to this process whenever a trainer comes to one of its methods."""
    method = getattr(Trainer, where)

    def hit(*arguments):
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
        return method(*arguments)

    monkeypatch.setattr(Trainer, where, hit)


def test_a_signal_before_the_first_step_takes_none(copied, refused, monkeypatch):
    run = copied({"train": {"name": "new"}})
    signalled(monkeypatch, "restore")
    assert refused(stages.train, run, silent, code=3) == STOPPED
    assert newest(run.workspace, "new") == 0


def test_a_signal_lets_the_step_finish_and_keeps_it(copied, refused, monkeypatch, capsys):
    run = copied({"train": {"name": "new"}})
    signalled(monkeypatch, "step")
    assert refused(stages.train, run, silent, code=3) == STOPPED
    assert newest(run.workspace, "new") == 1
    assert "what is under way is finished within 60 s" in capsys.readouterr().err


def test_a_second_signal_ends_at_once(copied, refused, monkeypatch):
    run = copied({"train": {"name": "new"}})
    signalled(monkeypatch, "step", signals=2)
    assert refused(stages.train, run, silent, code=3) == STOPPED
    assert newest(run.workspace, "new") == 0


def test_the_end_of_the_time_of_grace_ends_at_once(copied, refused, monkeypatch):
    run = copied({"train": {"name": "new"}, "cluster": {"grace_seconds": 0.1}})
    monkeypatch.setattr(Trainer, "step", lambda trainer, batch: time.sleep(300))
    signalled(monkeypatch, "step")
    assert refused(stages.train, run, silent, code=3) == STOPPED
    assert newest(run.workspace, "new") == 0


def test_a_signal_while_the_model_is_put_lets_it_be_put_and_no_stage_follows(copied, refused, monkeypatch, whole):
    run = copied({"train": {"name": "new"}})
    signalled(monkeypatch, "finish")
    assert refused(stages.everything, run, silent, code=3) == STOPPED
    assert same(run.workspace, "new", Path(whole.workspace, "runs/student"))
    assert not Path(run.workspace, "runs/new/evaluation.json").exists()
    assert stages.train(run, silent)["resumed_from_step"] == 12


NEVER = 1 << 30


def asked_at(stop_at: int, step: int, _: object) -> bool:
    """Whether a training that reports is to end."""
    return step >= stop_at


def of_two(trainings: list, rank: int, meeting: Path, ended) -> None:
    """In a process of its own: one of two ranks that train one run after the other; rank 0 is asked to end at a step.

    Rank 1, if it looked itself, would find no checkpoint.
    """
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    if rank:
        trainer.newest_checkpoint = lambda store, warn: None
    for run, stop_at in trainings:
        result = loop.train(run, rank=rank, world=2, device=CPU, report=partial(asked_at, stop_at))
        ended.put((result["resumed_from_step"], result["steps"]))
    dist.destroy_process_group()


def test_two_ranks_stop_at_one_step_and_go_on_to_the_bits_and_metrics_of_an_undisturbed_two(copied, tmp_path):
    calm, run = copied({"train": {"name": "calm"}}), copied({"train": {"name": "stopped"}})
    trainings = [(calm, NEVER), (run, 0), (run, 4), (run, NEVER)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.commands.run"])
    ended = [context.Queue(), context.Queue()]
    for rank in range(2):
        context.Process(target=of_two, args=(trainings, rank, tmp_path / "meeting", ended[rank]), daemon=True).start()
    first, second = ([queue.get(timeout=120) for _ in trainings] for queue in ended)
    stop = first[2][1]
    assert first == second == [(0, 12), (0, 0), (0, stop), (stop, 12)] and 4 <= stop < 12
    assert same(run.workspace, "stopped", Path(run.workspace, "runs/calm"))
    assert lines(run.workspace, "stopped") == lines(run.workspace, "calm")


@pytest.mark.parametrize(("pace", "talks"), [(0.125, [0, 1, 3, 7, 15, 31, 47, 63]), (5.0, [0, 1, 2, 3, 4, 5, 6, 7])])
def test_ranks_talk_every_two_seconds_and_between_that_a_step_costs_nothing(monkeypatch, pace, talks):
    clock, talked = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(dist, "broadcast", lambda word, src: talked.append(step))
    ending = StopSync(0, world=2, device=CPU)
    for step in range(talks[-1] + 1):
        assert not ending.should_stop(step, False)
        clock[0] += pace
    assert talked == talks


class Ray:
    """As much of Ray as a messenger sees: answers that come when the test says so."""

    class exceptions:  # noqa: N801
        RayError = ConnectionError

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.answers: dict[int, bool | Exception] = {}
        self.put = self

    def remote(self, step, metrics):
        self.sent.append(step)
        return step

    def wait(self, references, timeout):
        return [one for one in references if one in self.answers], []

    def get(self, reference):
        if isinstance(self.answers[reference], Exception):
            raise self.answers[reference]
        return self.answers[reference]


def test_no_step_waits_for_the_board_and_none_ends_with_it():
    ray = Ray()
    messenger = ray_train._RankZeroReporter(ray, ray)
    assert not messenger(0, {}) and not messenger(1, {}) and ray.sent == [0]  # the answer is on its way
    ray.answers[0] = False
    assert not messenger(2, {}) and ray.sent == [0, 2]
    ray.answers[2] = ConnectionError("the board's node is lost")
    assert not messenger(3, {}) and ray.sent == [0, 2, 3]
    ray.answers[3] = True
    assert messenger(4, {}) and messenger(5, {})


class Reported:
    step = 0


@pytest.mark.parametrize("cause", [IncompleteError("a worker was lost"), RuntimeError("gone")])
def test_a_training_that_was_asked_to_stop_is_not_tried_again(copied, monkeypatch, capsys, cause):
    from ray.train import TrainingFailedError

    report, tries = Reported(), []
    report.stop = GracefulShutdown(60)

    def fit(*_):
        tries.append(1)
        report.stop.requested = True
        error = TrainingFailedError("failed")
        error.worker_failures = {0: cause}
        raise error

    monkeypatch.setattr(ray_train, "_fit", fit)
    for _ in range(2):  # under way, and before it is
        with pytest.raises(KeyboardInterrupt):
            ray_train._attempts(None, copied(), None, report)
    assert len(tries) == 1 and "started again" not in capsys.readouterr().err


def test_what_the_user_has_to_mend_is_said_also_where_a_stop_was_asked_for(copied, monkeypatch):
    from ray.train import TrainingFailedError

    report = Reported()
    report.stop = GracefulShutdown(60)

    def fit(*_):
        report.stop.requested = True
        error = TrainingFailedError("failed")
        error.worker_failures = {0: UserError("the loss is not finite")}
        raise error

    monkeypatch.setattr(ray_train, "_fit", fit)
    with pytest.raises(UserError, match="the loss is not finite"):
        ray_train._attempts(None, copied(), None, report)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nobody_takes_both_signals_away_while_they_are_kept(number):
    before, other = signal.getsignal(number), signal.getsignal(signal.SIGUSR1)
    with keep_signal_handlers():
        for one in (number, signal.SIGUSR1):
            signal.signal(one, lambda *_: None)
        assert signal.getsignal(number) is before and signal.getsignal(signal.SIGUSR1) is not other
    signal.signal(signal.SIGUSR1, other)
    assert signal.signal(number, before) is before  # by now it can be set again


def test_a_signal_after_the_last_part_lets_nothing_else_begin():
    with pytest.raises(KeyboardInterrupt), GracefulShutdown(60):
        os.kill(os.getpid(), signal.SIGTERM)
