"""Metrics: means over whole intervals, one line each, the same after a resume."""

import json

import pytest
import torch

from schemas.errors import UserError
from stages.storage.run_files import METRICS_FILE
from stages.storage.store import Store
from stages.train.checkpoint import Checkpoint, save_checkpoint
from stages.train.metrics import Metrics, show

LOSSES = dict(enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]))


def metrics(store: Store, every: int = 3) -> Metrics:
    return Metrics(store, "me", every, rank=0, world=1, device=torch.device("cpu"))


def walk(meter: Metrics, first: int, last: int) -> None:
    for step in range(first, last):
        meter.add({"loss": torch.tensor(LOSSES[step]), "class_loss": torch.tensor(2 * LOSSES[step])}, 4)
        meter.end_step(step, 0.5, step // 4, 4, lambda step: f"addresses of {step}")


def commit(store: Store, meter: Metrics, step: int) -> None:
    save_checkpoint(store, Checkpoint(step, {}, {}, {}, meter.lines()), "me", keep=1)


def steps(store: Store) -> list[int]:
    return [json.loads(line)["step"] for line in store.read(METRICS_FILE).splitlines()]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def test_a_line_holds_the_means_since_the_one_before(store):
    meter = metrics(store)
    walk(meter, 0, 7)
    commit(store, meter, 7)
    meter.show()
    lines = [json.loads(line) for line in store.read(METRICS_FILE).splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(3, 7 / 3), (6, 56 / 3)]
    assert [line["class_loss"] for line in lines] == [14 / 3, 112 / 3]
    assert [(line["epoch"], line["lr"]) for line in lines] == [(0, 0.5), (1, 0.5)]
    assert meter.loss() == 64.0


def test_micro_batches_count_by_their_views(store):
    meter = metrics(store, every=1)
    meter.add({"loss": torch.tensor(1.0)}, 6)
    meter.add({"loss": torch.tensor(4.0)}, 2)
    meter.end_step(0, 0.5, 0, 8, str)
    assert meter.last["loss"] == pytest.approx(1.75)


@pytest.mark.parametrize("at", range(8))
def test_a_resume_at_any_step_leaves_no_gap_and_no_double(store, at):
    before = metrics(store)
    walk(before, 0, at)
    state, so_far = before.state(), before.lines()
    walk(before, at, 7)
    after = metrics(store)
    after.restore(at, state, so_far)
    walk(after, at, 7)
    timeless = [{k: v for k, v in line.items() if k not in ("views_per_second", "waiting")} for line in after._lines]
    assert timeless == [{k: line[k] for k in timeless[0]} for line in before._lines]
    assert after.loss() == before.loss()


DAMAGES = [b'{"step": 3, "lo', b"\xff\xfe\n", b"[3]\n", b'{"loss": 2.0}\n']


@pytest.mark.parametrize("damage", [None, *DAMAGES])
def test_lines_that_were_damaged_or_deleted_are_put_anew_from_the_checkpoint(store, damage):
    meter = metrics(store)
    walk(meter, 0, 6)
    commit(store, meter, 6)
    if damage:
        store.put(METRICS_FILE, damage)
    show(store, "me")
    lines = [json.loads(line) for line in store.read(METRICS_FILE).splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(3, 7 / 3), (6, 56 / 3)]


def test_a_checkpoint_of_an_earlier_version_goes_on_from_the_lines_beside_it_up_to_its_step(store):
    first = b'{"step": 3, "loss": 1.5, "views_per_second": 8.0, "waiting": 0.5}\n'
    store.put(METRICS_FILE, first + b'{"step": 6, "loss": 1.25}\n')
    save_checkpoint(store, Checkpoint(4, {}, {}, {}), "me", keep=1)
    meter = metrics(store)
    meter.restore(4, {}, None)
    meter.show()
    assert meter.last["step"] == 3 and steps(store) == [3, 6]
    walk(meter, 4, 6)
    commit(store, meter, 6)
    meter.show()
    assert steps(store) == [3, 6] and store.read(METRICS_FILE).startswith(first)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lines_beside_a_checkpoint_of_an_earlier_version_are_named_with_the_mend(store, damage):
    store.put(METRICS_FILE, b'{"step": 1}\n' + damage)
    with pytest.raises(UserError, match=r"metrics\.jsonl: is damaged \(.*\); fix it, or delete it"):
        metrics(store).restore(2, {}, None)


def test_a_command_that_is_behind_takes_no_line_from_one_ahead_not_even_by_a_late_put(store, monkeypatch):
    ahead, behind, put = metrics(store, every=1), metrics(store, every=1), Store.put
    walk(ahead, 0, 2)
    walk(behind, 0, 1)
    commit(store, behind, 1)

    def late(self, path, content):
        if path == METRICS_FILE:  # the one ahead commits and puts its lines between the other's look and its put
            monkeypatch.undo()
            commit(store, ahead, 2)
            ahead.show()
            assert steps(store) == [1, 2]
        return put(self, path, content)

    monkeypatch.setattr(Store, "put", late)
    behind.show()
    assert steps(store) == [1, 2]
    ahead.show()
    lines = [json.loads(line) for line in store.read(METRICS_FILE).splitlines()]
    assert lines == ahead._lines  # with what the clock said


def test_a_resumed_run_keeps_what_the_clock_said_before(store):
    before, after = metrics(store), metrics(store)
    walk(before, 0, 3)
    commit(store, before, 3)
    before.show()
    after.restore(3, {}, before.lines())
    walk(after, 3, 6)
    commit(store, after, 6)
    after.show()
    lines = [json.loads(line) for line in store.read(METRICS_FILE).splitlines()]
    assert lines == [before.last, after.last] and "waiting" in lines[0]


def test_a_checkpoint_is_the_same_bytes_whatever_the_clock_said(store):
    one, other = metrics(store), metrics(store)
    walk(one, 0, 6)
    walk(other, 0, 6)
    assert one.lines() == other.lines() and one.last != other.last


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_loss_that_is_not_finite_is_refused_at_the_next_line_or_checkpoint_and_its_step_is_named(
    store, monkeypatch, bad, at
):
    monkeypatch.setitem(LOSSES, at, bad)
    checks = (
        lambda meter: walk(meter, at + 1, 7),
        lambda meter: meter.refuse_bad_losses(lambda step: f"addresses of {step}"),
    )
    for check in checks:
        meter = metrics(store)
        walk(meter, 0, at + 1)
        with pytest.raises(UserError, match=f"the loss of step {at} is not finite; addresses of {at}; the last"):
            check(meter)


def test_time_spent_waiting_for_batches_is_a_share_of_all(store):
    meter = metrics(store, every=1)
    for step, _ in enumerate(meter.timed([1, 2, 3])):
        meter.add({"loss": torch.tensor(1.0)}, 4)
        meter.end_step(step, 0.5, 0, 4, str)
    assert [line["step"] for line in meter._lines] == [1, 2, 3]
    assert all(0 <= line["waiting"] <= 1 and line["views_per_second"] > 0 for line in meter._lines)


def test_all_processes_go_on_with_their_terms_in_one_order_whatever_order_a_checkpoint_hands_out(store):
    before = metrics(store)
    walk(before, 0, 2)
    orders = set()
    for state in (before.state(), dict(reversed(before.state().items()))):
        after = metrics(store)
        after.restore(2, state, b"")
        orders.add(tuple(after.state()))
    assert len(orders) == 1
