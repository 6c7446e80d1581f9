"""Batches are functions of their step: the same for any workers, ranks and beginnings, and proven to be the teacher's.

All on the whole workspace of conftest: 3 shards of 21, 20 and 20 images, 2 repeats, 3 passes labelled.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.errors import UserError
from stages.data import views as batches
from stages.data.loader import load
from stages.data.split import Split
from stages.label.dataset import LabelDataset, part_batches
from stages.label.label_set import LabelSpec
from stages.replay.decide import Box, Decider
from stages.train.dataset import Batch
from tests.support.batches import same, steps
from tests.support.world import decisions, flip_byte


@pytest.fixture(scope="module")
def truth(whole) -> list[Batch]:
    """The first 20 batches: 320 views of the 360 that are labelled."""
    dataset = steps(whole)
    return [dataset[step] for step in range(20)]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_loader_workers(whole, truth, workers):
    loaded = list(load(steps(whole), workers=workers, order=range(20)))
    assert all(same(one, other) for one, other in zip(loaded, truth, strict=True))


@pytest.mark.parametrize("start", [1, 7, 19])
def test_batches_are_the_same_wherever_a_run_begins(whole, truth, start):
    resumed = list(load(steps(whole), workers=0, order=range(start, 20)))
    assert all(same(one, other) for one, other in zip(resumed, truth[start:], strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_pair_views_dealt_in_turn_are_the_batch_of_one_and_show_a_rank_more_images(whole, truth, world):
    ranks = [steps(whole, rank, world, spread=True) for rank in range(world)]
    for step in (0, 7, 19):
        parts = [dataset[step] for dataset in ranks]
        pairs = torch.stack([part.views.unflatten(0, (-1, 2)) for part in parts], 1)  # turn by turn, rank by rank
        assert torch.equal(pairs.flatten(0, 2), truth[step].views)
        decisions = torch.stack([part.decisions.unflatten(0, (-1, 2)) for part in parts], 1).flatten()
        assert torch.equal(decisions, truth[step].decisions)
        resumed = next(iter(load(ranks[1], workers=0, order=[step])))
        assert same(resumed, parts[1])
        for rank, dataset in enumerate(ranks):
            images = {(unit.shard, unit.row_a) for unit in dataset.units(step)}
            in_a_slice = {(unit.shard, unit.row_a) for unit in steps(whole, rank, world).units(step)}
            assert len(images) == len(dataset.units(step)) > len(in_a_slice), "2 repeats of an image share a slice"


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_batches_put_together_are_the_batch_of_one(whole, truth, world):
    ranks = [steps(whole, rank, world) for rank in range(world)]
    for step in (0, 7, 19):
        parts = [dataset[step] for dataset in ranks]
        assert {len(part.classes) for part in parts} == {16 // world}
        for pick in (lambda b: b.views, lambda b: b.classes, lambda b: b.decisions, lambda b: b.mix.lam):
            assert torch.equal(torch.cat([pick(part) for part in parts]), pick(truth[step]))


def test_a_batch_without_labels_has_the_same_views_and_no_decisions(whole, truth):
    batch = steps(whole, labelled=False)[5]
    assert torch.equal(batch.views, truth[5].views)
    assert len(batch.decisions) == 0


def test_every_view_comes_with_its_own_decision_and_its_own_class(whole, truth):
    stored, split, dataset = decisions(whole.workspace), Split.open(whole.workspace, "train"), steps(whole)
    for batch in truth:
        slots = [(u.shard, row, u.view) for u in dataset.units(batch.step) for row in (u.row_a, u.row_b)]
        assert batch.decisions.tolist() == [stored[address] for address in slots]
        names = [split.index(shard).names[row] for shard, row, _ in slots]
        assert [split.classes[c] for c in batch.classes.tolist()] == [name.split("/")[0] for name in names]


def test_a_view_depends_on_nothing_but_its_address(whole, truth):
    maker = batches.ViewRenderer(Split.open(whole.workspace, "train"), whole.views)
    dataset, view = steps(whole), np.empty((32, 32, 3), np.uint8)
    for batch in truth[::-3]:  # in another order, with another cache
        unit = dataset.units(batch.step)[3]
        maker.view(unit.shard, unit.row_b, unit.view, view)
        assert np.array_equal(view, batch.views[7].numpy())


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch", [2, 16])
def test_the_workers_of_a_part_make_every_slot_of_every_batch_once(whole, workers, batch):
    split, spec = Split.open(whole.workspace, "train"), LabelSpec(0, 1, 3)
    views = LabelDataset(split, whole.views, batch)
    contributions = load(views, workers=workers, order=views.order(spec, workers))
    maker, expected = batches.ViewRenderer(split, whole.views), np.empty((32, 32, 3), np.uint8)
    for units in part_batches(split, whole.views, spec, batch):
        made = [next(contributions) for _ in range(workers)]
        slots = torch.cat([slots for slots, *_ in made])
        assert sorted(slots.tolist()) == list(range(2 * len(units)))
        views = torch.cat([one.views for one in made])[slots.argsort()]
        maker.view(0, units[-1].row_b, units[-1].view, expected)
        assert np.array_equal(views[-1].numpy(), expected)
    assert next(contributions, None) is None


def test_no_batch_of_the_teachers_reaches_over_the_end_of_a_pass(whole):
    split = Split.open(whole.workspace, "train")
    one_part = list(part_batches(split, whole.views, LabelSpec(1, 0, 3), 16))
    three = [units for p in range(3) for units in part_batches(split, whole.views, LabelSpec(1, p, p + 1), 16)]
    assert one_part == three
    assert [len(units) for units in one_part] == 3 * [8, 8, 4]


def test_a_shifted_crop_is_refused_with_its_address_and_both_sides_versions(whole, monkeypatch, refused):
    decide = Decider.view

    def shifted(self, *address):
        decided = decide(self, *address)
        crop, width = decided.crop, address[-1]
        left = crop.left + 2 if crop.left + 2 + crop.width <= width else max(crop.left - 2, 0)
        object.__setattr__(decided, "crop", Box(crop.top, left, crop.height, crop.width))
        return decided

    monkeypatch.setattr(Decider, "view", shifted)
    dataset = steps(whole)
    line = refused(lambda: [dataset[step] for step in range(20)])
    assert "is not the view the teacher saw" in line
    shard, row, view = (int(part.split()[-1]) for part in line.split(":")[0].split(","))
    part = dataset.labels.of(shard, view)
    assert (row, view) in part.signatures
    assert line.count(f"torch {torch.__version__}") == 2
    assert line.count(f"numpy {np.__version__}") == 2
    assert line.endswith("label again, or train with the versions that labelled")


def test_rounding_by_one_level_is_not_refused(whole, monkeypatch, truth):
    render_all, random = batches.Renderer.render_all, np.random.default_rng(0)

    def rounded(self, image, decided, outs):
        render_all(self, image, decided, outs)
        for out in outs:
            np.copyto(out, np.clip(out.astype(int) + random.integers(-1, 2, out.shape), 0, 255).astype(np.uint8))

    monkeypatch.setattr(batches.Renderer, "render_all", rounded)
    dataset = steps(whole)
    for step in range(20):
        assert not torch.equal(dataset[step].views, truth[step].views)


def test_signatures_are_there_to_be_checked_in_every_pass(whole, truth):
    dataset = steps(whole)
    units = [unit for step in range(20) for unit in dataset.units(step)]
    signed = [
        (unit.shard, row, unit.view)
        for unit in units
        for row in (unit.row_a, unit.row_b)
        if (row, unit.view) in dataset.labels.of(unit.shard, unit.view).signatures
    ]
    found = {(shard, view) for shard, _, view in signed}
    assert found >= {(shard, view) for shard in range(3) for view in range(4)}
    assert {view for _, view in found} == set(range(6))  # of the second part of a shard too


DAMAGE = {
    "a tar": ("shards/train/shard-000001.tar", 1600, "image "),
    "an index": ("shards/train/shard-000001.parquet", 200, "has other bytes than its receipt says"),
    "a label file": ("labels/teacher/shard-000001.passes-00000-00002.parquet", 200, "has other bytes"),
}


def advice(run, path):
    """What makes a damaged file of a part again."""
    folder, name = path.rsplit("/", 1)
    verb = "label-teacher" if folder.startswith("labels") else "shard"
    part = name.rpartition(".")[0]
    return f"delete {run.workspace}/{folder}/receipts/{part}.json and rerun `deit-pipeline {verb}`"


@pytest.mark.parametrize("what", DAMAGE)
def test_one_flipped_bit_stops_the_trainer_with_a_line_that_names_the_file(copied, refused, what):
    path, at, says = DAMAGE[what]
    run = copied()
    flip_byte(Path(run.workspace, path), at)
    dataset = steps(run)
    line = refused(lambda: [dataset[step] for step in range(20)])
    assert line.startswith(f"{run.workspace}/{path}: ")
    assert says in line and line.endswith(f"; {advice(run, path)}")


@pytest.mark.parametrize("what", DAMAGE)
def test_a_deleted_file_stops_the_trainer_with_a_line_that_names_the_file(copied, refused, what):
    run, path = copied(), DAMAGE[what][0]
    Path(run.workspace, path).unlink()
    dataset = steps(run)
    line = refused(lambda: [dataset[step] for step in range(20)])
    assert line == f"{run.workspace}/{path}: is missing; {advice(run, path)}"


def test_a_tar_cut_short_stops_the_trainer_with_a_line_that_names_it(copied, refused):
    run = copied()
    tar = Path(run.workspace, "shards/train/shard-000002.tar")
    tar.write_bytes(tar.read_bytes()[:5000])
    dataset = steps(run)
    line = refused(lambda: [dataset[step] for step in range(20)])
    assert line.startswith(f"{tar}: image ")


def test_a_loader_process_hands_on_a_users_error_as_the_one_line_it_is(copied):
    run = copied()
    Path(run.workspace, DAMAGE["a tar"][0]).unlink()
    with pytest.raises(UserError) as caught:
        list(load(steps(run), workers=2, order=range(20)))
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(f"is missing; {advice(run, DAMAGE['a tar'][0])}")
