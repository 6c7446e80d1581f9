"""The loop without Ray: budgets, back-off that holds nobody up, lost nodes that cost nothing, an orderly stop."""

import os
import signal
import threading
from collections import deque
from types import SimpleNamespace

import pytest

from pipeline.execution import scheduler as loop_module
from pipeline.execution.failures import PartFailure
from pipeline.execution.scheduler import Scheduler, ThreadExecutor, WorkerLost
from pipeline.execution.shutdown import GracefulShutdown
from schemas.errors import IncompleteError, UserError
from schemas.receipts import Receipt
from stages.shard.plan import ShardSpec

SPECS = [ShardSpec(number, ()) for number in range(4)]
FAULT = PartFailure("ValueError: why", "its traceback")


def receipt(part: str) -> Receipt:
    return Receipt(part=part, files=(), rows=1, made_by="me", facts={})


class Scripted:
    """An executor with scripted poll: a part's next one, or its receipt where none is left; seconds are free."""

    def __init__(self, poll: dict[int, list], slots: int = 2) -> None:
        self.script = {SPECS[number].name: deque(those) for number, those in poll.items()}
        self.begun, self.order, self.slots = [], [], slots

    def free(self):
        return len(self.begun) < self.slots

    def submit(self, spec):
        self.begun.append(spec)
        self.order.append(spec.shard)

    def in_flight(self):
        return [spec.name for spec in self.begun]

    def cancel_queued(self):
        del self.begun[1:]

    def poll(self, seconds):
        if not self.begun:
            return []
        spec = self.begun.pop(0)
        script = self.script.get(spec.name)
        return [(spec, script.popleft() if script else receipt(spec.name))]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(loop_module, "_LONGEST_WAIT", 0.05)


def run(hands, attempts=3):
    done, failed, stop = [], {}, GracefulShutdown(0)
    loop = Scheduler(
        hands, SPECS, attempts=attempts, done=lambda one: done.append(one.part),
        failed=lambda part, fault: failed.update({part: fault}),
    )  # fmt: skip
    loop.run(stop)
    return sorted(done), failed


ALL = [spec.name for spec in SPECS]


def test_a_part_that_waits_for_its_next_attempt_holds_nobody_up():
    hands = Scripted({0: [FAULT, FAULT]}, slots=1)
    assert run(hands) == (ALL, {})
    assert hands.order == [0, 1, 2, 3, 0, 0]


def test_a_part_is_given_up_after_its_attempts_and_the_others_are_made():
    hands = Scripted({1: [FAULT] * 3})
    assert run(hands) == ([name for name in ALL if name != ALL[1]], {ALL[1]: FAULT})
    assert hands.order.count(1) == 3


def test_lost_nodes_cost_a_part_nothing_and_lost_processes_an_attempt():
    assert run(Scripted({0: [WorkerLost("node", own=False)] * 7}), attempts=1) == (ALL, {})
    done, failed = run(Scripted({0: [WorkerLost("killed", own=True)] * 3}))
    assert (done, list(failed)) == (ALL[1:], [ALL[0]])


def test_a_part_whose_nodes_are_always_lost_ends_the_stage_and_is_not_put_aside(refused):
    line = refused(run, Scripted({0: [WorkerLost("node", own=False)] * 99}), code=3)
    assert line.startswith("1 parts could not be made for want of store or cluster (shard-000000: node)")


def test_a_store_that_stays_broken_puts_no_part_aside(refused):
    hands = Scripted({0: [IncompleteError("the store is gone")] * 3})
    assert "(shard-000000: the store is gone); rerun the same command to resume" in refused(run, hands, code=3)
    assert hands.order.count(0) == 3


def test_a_users_error_ends_the_handing_out(refused):
    hands = Scripted({0: [UserError("fix this")]}, slots=2)
    assert refused(run, hands) == "fix this"
    assert hands.order == [0, 1]


class Signalled(Scripted):
    """Asks for the end at the first outcome, as a scheduler does."""

    def poll(self, seconds):
        if len(self.order) == self.slots:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().poll(seconds)


def test_a_signal_ends_the_handing_out_and_lets_the_part_under_way_finish(capsys):
    hands, done, before = Signalled({}), [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), GracefulShutdown(60) as stop:
        Scheduler(hands, SPECS, attempts=1, done=lambda one: done.append(one.part), failed=print).run(stop)
    assert hands.order == [0, 1] and done == ALL[:1]
    assert "what is under way is finished within 60 s" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_end_of_the_time_of_grace_and_a_second_signal_end_at_once():
    with pytest.raises(KeyboardInterrupt), GracefulShutdown(0.01):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)
    with pytest.raises(KeyboardInterrupt), GracefulShutdown(60):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(30)


class Slow:
    """A worker of two lanes that notes how many parts it makes at once."""

    def __init__(self, refuse: str = "") -> None:
        self.job, self.at_once, self.most = SimpleNamespace(lanes=2), 0, 0
        self._lock, self._two, self._refuse = threading.Lock(), threading.Event(), refuse

    def run(self, spec):
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            if self.at_once == 2:
                self._two.set()
        self._two.wait(10)  # the first is not done before a second has begun
        with self._lock:
            self.at_once -= 1
        return UserError("no") if spec.name == self._refuse else receipt(spec.name)


def test_threads_make_as_many_parts_at_once_as_there_are_lanes_and_no_more():
    worker = Slow()
    assert run(ThreadExecutor(worker)) == (ALL, {})
    assert worker.most == 2


def test_a_refused_part_in_threads_ends_the_stage():
    done = []
    loop = Scheduler(
        ThreadExecutor(Slow(refuse=ALL[0])), SPECS, attempts=3, done=lambda one: done.append(one.part), failed=print
    )
    with pytest.raises(UserError, match="no"):
        loop.run(GracefulShutdown(0))
    assert ALL[0] not in done
