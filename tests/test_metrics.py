"""Metrics: means over whole intervals, one line each, the same after a resume."""

import json

import pytest
import torch

from schemas.errors import PipelineError
from stages.metrics import FILE, Metrics
from stages.store import Store

LOSSES = dict(enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]))


def metrics(store: Store, every: int = 3) -> Metrics:
    return Metrics(store, every, rank=0, world=1, device=torch.device("cpu"))


def walk(meter: Metrics, first: int, last: int) -> None:
    for step in range(first, last):
        meter.add({"loss": torch.tensor(LOSSES[step]), "class_loss": torch.tensor(2 * LOSSES[step])}, 4)
        meter.end_step(step, 0.5, step // 4, 4, lambda step: f"addresses of {step}")


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def test_a_line_holds_the_means_since_the_one_before(store):
    meter = metrics(store)
    walk(meter, 0, 7)
    meter.flush()
    lines = [json.loads(line) for line in store.read(FILE).splitlines()]
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
    before.flush()
    state = before.state()
    walk(before, at, 7)
    before.flush()  # lines after the checkpoint that a killed run had put already
    after = metrics(store)
    after.restore(at, state)
    walk(after, at, 7)
    timeless = [{k: v for k, v in line.items() if k not in ("views_per_second", "waiting")} for line in after._lines]
    assert timeless == [{k: line[k] for k in timeless[0]} for line in before._lines]
    assert after.loss() == before.loss()


@pytest.mark.parametrize("damage", [b'{"step": 3, "lo', b"\xff\xfe\n", b"[3]\n", b'{"loss": 2.0}\n'])
def test_damaged_lines_are_named_with_the_mend(store, damage):
    store.put(FILE, b'{"step": 1}\n' + damage)
    with pytest.raises(PipelineError, match=r"metrics\.jsonl: is damaged \(.*\); mend it, or delete it"):
        metrics(store).restore(2, {})


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
        with pytest.raises(PipelineError, match=f"the loss of step {at} is not finite; addresses of {at}; the last"):
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
        after.restore(2, state)
        orders.add(tuple(after.state()))
    assert len(orders) == 1
