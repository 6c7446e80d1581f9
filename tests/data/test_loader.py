"""Items cross from worker processes whole, in order and in bounded number, and a lost worker is one line."""

import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from schemas.errors import UserError
from stages.data import views as batches
from stages.data.loader import load, moved, on_device
from stages.data.split import Split
from stages.data.views import ViewRenderer
from stages.label import dataset
from stages.label.dataset import LabelDataset
from stages.label.label_set import LabelSpec
from stages.replay.mix import Mix
from stages.replay.order import Stream
from stages.train.dataset import Batch, TrainDataset
from tests.support.batches import same, steps


class Numbers(Dataset):
    """Item n: its number, tensors of odd lengths and several types, and the worker's process."""

    def __getitem__(self, number):
        tensors = torch.full((number, 3), number, dtype=torch.uint8), torch.tensor([], dtype=torch.int64)
        return number, *tensors, torch.arange(float(number)), os.getpid()


class Diary(Numbers):
    """Writes down every item it begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, number):
        (self.folder / str(number)).touch()
        return super().__getitem__(number)


class Fatal(Numbers):
    """The worker that builds item 5 is killed, as the kernel does where memory runs out."""

    def __getitem__(self, number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


class Interrupted(Numbers):
    """Every worker hears Ctrl-C, as all processes of a terminal do."""

    def __getitem__(self, number):
        os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(number)


class Faulty(Numbers):
    """Has a bug."""

    def __getitem__(self, number):
        raise RuntimeError("a bug of ours")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_items_come_in_order_and_whole(workers):
    order = [3, 0, 7, 7, 1]
    for number, (said, wide, empty, floats, _) in zip(
        order, load(Numbers(), workers=workers, order=order), strict=True
    ):
        assert said == number
        assert torch.equal(wide, torch.full((number, 3), number, dtype=torch.uint8))
        assert (empty.dtype, empty.shape) == (torch.int64, (0,))
        assert torch.equal(floats, torch.arange(float(number)))


def test_ctrl_c_is_the_commands_to_hear_and_ends_no_worker():
    assert [number for number, *_ in load(Interrupted(), workers=1, order=range(3))] == [0, 1, 2]


def test_an_item_can_be_kept_and_changed_after_its_workers_are_gone():
    items = list(load(Numbers(), workers=2, order=range(6)))
    for number, wide, *_ in items:
        wide += 1
        assert (wide == number + 1).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell where memory lies")
def test_no_item_lies_in_the_shared_memory_folder_that_containers_keep_small():
    number, wide, *_ = next(load(Numbers(), workers=1, order=[200]))
    assert number == 200
    assert mapped_file(wide.data_ptr()).startswith("/memfd:")


def mapped_file(address: int) -> str:
    """The name of the file whose memory this address lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, end = (int(edge, 16) for edge in line.split()[0].split("-"))
        if first <= address < end:
            return line.split(maxsplit=5)[5]
    raise AssertionError("the address is not mapped")


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_no_more_than_two_items_each_ahead_of_the_consumer(tmp_path, workers):
    coming = load(Diary(tmp_path), workers=workers, order=range(50))
    for taken in range(1, 4):
        next(coming)
        assert len(list(tmp_path.iterdir())) <= taken + 2 * workers
    list(coming)
    assert len(list(tmp_path.iterdir())) == 50


def test_a_killed_worker_is_one_line_that_can_be_resumed(refused):
    line = refused(lambda: list(load(Fatal(), workers=2, order=range(10))), code=3)
    assert line.startswith("a data process was lost (")
    assert "rerun the same command to resume" in line


def test_a_bug_in_a_worker_keeps_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*a bug of ours"):
        list(load(Faulty(), workers=1, order=range(3)))


def test_a_step_finds_its_batch_on_the_device_in_order_and_whole(whole):
    batches_ = [steps(whole)[step] for step in range(4)]
    assert all(same(one, other) for one, other in zip(on_device(batches_, torch.device("cpu")), batches_, strict=True))


def test_every_tensor_of_a_batch_is_moved_to_the_device(whole):
    batch = moved(steps(whole)[0], torch.device("meta"))
    assert isinstance(batch, Batch) and isinstance(batch.mix, Mix)
    assert {tensor.device.type for tensor in (batch.views, batch.classes, *batch.mix, batch.decisions)} == {"meta"}
    assert batch.step == 0


def large_steps(run) -> TrainDataset:
    """Batches of views of 224 pixels, which libraries do share out among their threads."""
    split = Split.open(run.workspace, "train")
    recipe = run.views.model_copy(update={"image_size": 224})
    stream = Stream(split.rows, repeats=2, window=2, recipe_seed=recipe.seed, seed=0)
    return TrainDataset(split, recipe, stream, None, batch=32, rank=0, world=1)


@pytest.fixture
def threads():
    """Sets the threads of torch and OpenCV, and puts them back."""
    before = torch.get_num_threads(), cv2.getNumThreads()

    def set_(count: int) -> None:
        torch.set_num_threads(count)
        cv2.setNumThreads(count)

    yield set_
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def test_a_batch_is_the_same_bits_whatever_the_threads_of_the_libraries(whole, threads):
    made = []
    for count in (1, 2, 5):
        threads(count)
        made += [large_steps(whole)[2], large_steps(whole)[9]]
    assert all(same(made[0], one) for one in made[2::2])
    assert all(same(made[1], one) for one in made[3::2])
    assert same(made[0], next(load(large_steps(whole), workers=1, order=[2])))


def part_views(split, recipe, spec, batch, workers):
    views = LabelDataset(split, recipe, batch)
    return load(views, workers=workers, order=views.order(spec, max(workers, 1)))


def decodes(monkeypatch, split, recipe, spec, kept_bytes) -> tuple[int, torch.Tensor]:
    """How often an image is decoded for a part, and the part's views."""
    count = 0
    decode = batches.decode

    def counted(data, rows):
        nonlocal count
        count += 1
        return decode(data, rows)

    monkeypatch.setattr(dataset, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(batches, "decode", counted)
    views = torch.cat([one.views for one in part_views(split, recipe, spec, 16, workers=0)])
    monkeypatch.setattr(batches, "decode", decode)
    return count, views


def test_an_image_is_decoded_once_a_part_where_memory_allows_and_at_most_once_a_pass(whole, monkeypatch):
    split, spec = Split.open(whole.workspace, "train"), LabelSpec(1, 0, 3)
    once, views = decodes(monkeypatch, split, whole.views, spec, 1 << 30)
    each_pass, same_views = decodes(monkeypatch, split, whole.views, spec, 0)
    some, also_same = decodes(monkeypatch, split, whole.views, spec, 50_000)
    assert once == 20
    assert 56 <= each_pass <= 60  # a pair in use at the end of a pass may be wanted first in the next
    assert once < some < each_pass
    assert torch.equal(views, same_views) and torch.equal(views, also_same)


@pytest.mark.parametrize("kept_bytes", [0, 20_000, 60_000])
def test_decoded_images_take_no_more_memory_than_allowed_beyond_the_pair_in_use(whole, kept_bytes):
    split, out = Split.open(whole.workspace, "train"), np.empty((32, 32, 3), np.uint8)
    maker = ViewRenderer(split, whole.views, kept_bytes)
    largest = max(int((index.heights.astype(int) * index.widths).max()) * 3 for index in map(split.index, range(3)))
    for row in [*range(20), *reversed(range(20))]:
        maker.view(0, row, 0, out)
        held = sum(image.nbytes for image in maker._decoded.values())
        assert held <= max(kept_bytes, 2 * largest)
        assert len(maker._decoded) >= min(2, row + 1)


def test_what_a_worker_refuses_is_the_line_alone(copied):
    run = copied()
    Path(run.workspace, "shards/train/shard-000000.tar").unlink()
    split = Split.open(run.workspace, "train")
    with pytest.raises(
        UserError, match=r"^[^\n]*is missing; delete \S*/receipts/shard-000000\.json and rerun `deit-pipeline shard`$"
    ):
        list(part_views(split, run.views, LabelSpec(0, 0, 1), 16, workers=2))


def test_the_worker_processes_are_others_than_this_one():
    pids = {item[-1] for item in load(Numbers(), workers=2, order=range(6))}
    assert len(pids) == 2 and os.getpid() not in pids
