"""The cache of decoded images: the same views to the bit, within its bound, whatever happens to who fills it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.config import CacheConfig
from schemas.errors import UserError
from schemas.recipe import Recipe
from stages.data import decoded
from stages.data import views as batches
from stages.data.loader import load
from stages.data.split import Split
from stages.data.views import ViewRenderer
from stages.label.dataset import LabelDataset
from stages.label.label_set import LabelSet, LabelSpec
from stages.replay.order import Stream
from stages.storage.store import Store
from stages.train.dataset import TrainDataset
from tests.end_to_end.test_full_disk import ROOM
from tests.support.world import ROOT, flip_byte

MOMENTS = ("pixels", "before the sum", "setting aside")


def opened(workspace: str, folder: Path, gigabytes: float = 1.0) -> Split:
    return Split.open(
        workspace, "train", CacheConfig(decoded=True, decoded_folder=str(folder), decoded_gigabytes=gigabytes)
    )


def all_views(split: Split, recipe: Recipe) -> np.ndarray:
    """Three views of each image, by a process that has decoded nothing yet."""
    slots = [(shard, row, view) for shard in range(3) for row in range(split.rows[shard]) for view in range(3)]
    outs = np.empty((len(slots), recipe.image_size, recipe.image_size, 3), np.uint8)
    ViewRenderer(split, recipe).views(slots, outs)
    return outs


def lengths(folder: Path) -> list[int]:
    return sorted(path.stat().st_size for path in folder.glob("*.pixels"))


@pytest.fixture
def decodes(monkeypatch) -> list[int]:
    """What is decoded from here on: the number of rows asked for, None = all."""
    asked, decode = [], batches.decode
    monkeypatch.setattr(batches, "decode", lambda data, rows=None: (asked.append(rows), decode(data, rows))[1])
    return asked


@pytest.fixture
def expected(whole) -> np.ndarray:
    return all_views(Split.open(whole.workspace, "train"), whole.views)


def test_images_are_decoded_once_and_their_views_stay_the_same_bits(whole, tmp_path, decodes, expected):
    del decodes[:]
    assert (all_views(opened(whole.workspace, tmp_path), whole.views) == expected).all()
    assert len(decodes) == 61
    assert (all_views(opened(whole.workspace, tmp_path), whole.views) == expected).all()
    assert len(decodes) == 61, "another process decodes nothing"


def test_training_and_labelling_read_it(whole, tmp_path, decodes):
    split = {"plain": Split.open(whole.workspace, "train"), "decoded": opened(whole.workspace, tmp_path)}
    steps, parts = {}, {}
    for name, one in (*split.items(), ("again", opened(whole.workspace, tmp_path))):
        del decodes[:]
        stream = Stream(one.rows, repeats=2, window=2, recipe_seed=0, seed=0)
        asked = TrainDataset(one, whole.views, stream, LabelSet.open(whole, one), batch=16, rank=0, world=1)
        steps[name] = [asked[step].views for step in range(7)]
        part = LabelDataset(one, whole.views, 16)
        made = load(part, workers=0, order=part.order(LabelSpec(1, 0, 3), 1))
        parts[name] = [contribution.views for contribution in made]
    assert decodes == []
    for name in ("decoded", "again"):
        assert all((a == b).all() for a, b in zip(steps[name], steps["plain"], strict=True))
        assert all((a == b).all() for a, b in zip(parts[name], parts["plain"], strict=True))


def test_a_changed_image_is_noticed_and_decoded_again(whole, tmp_path, decodes, expected):
    all_views(opened(whole.workspace, tmp_path), whole.views)
    files = sorted(tmp_path.glob("*.pixels"))
    good = [file.read_bytes() for file in files]
    flip_byte(files[0], len(good[0]) - 200)  # one bit of the last image
    flip_byte(files[1], 0)  # of what proves the first
    torn = bytearray(good[2])
    torn[-3000:-1000] = bytes(2000)  # pixels that never reached the disk
    files[2].write_bytes(torn)
    del decodes[:]
    assert (all_views(opened(whole.workspace, tmp_path), whole.views) == expected).all()
    assert 3 <= len(decodes) <= 4
    assert [file.read_bytes() for file in files] == good


def test_a_file_of_another_length_is_made_again(whole, tmp_path, expected):
    all_views(opened(whole.workspace, tmp_path), whole.views)
    before = lengths(tmp_path)
    os.truncate(next(tmp_path.glob("*.pixels")), 4096)
    assert (all_views(opened(whole.workspace, tmp_path), whole.views) == expected).all()
    assert lengths(tmp_path) == before


def test_what_does_not_fit_is_decoded_and_nothing_else(whole, tmp_path, decodes, expected):
    all_views(opened(whole.workspace, tmp_path / "all"), whole.views)
    bound = sum(lengths(tmp_path / "all")[-2:]) + 100
    del decodes[:]
    for _ in range(3):
        assert (all_views(opened(whole.workspace, tmp_path / "two", bound / 1e9), whole.views) == expected).all()
        assert sum(lengths(tmp_path / "two")) <= bound
    assert len(lengths(tmp_path / "two")) == 2, "shards of one split do not drive each other out"
    assert 61 + 2 * 20 <= len(decodes) <= 61 + 2 * 21
    assert any(decodes), "of what is not kept, only the rows above the crops' ends are decoded"


def test_other_splits_make_room_unless_a_process_holds_them(whole, tmp_path, expected):
    all_views(opened(whole.workspace, tmp_path), whole.views)
    bound = (sum(lengths(tmp_path)) + 100) / 1e9
    other = opened(whole.workspace, tmp_path, bound)
    other.content = "other"
    all_views(other, whole.views)
    assert {path.name[:16] for path in tmp_path.glob("*.pixels")} == {decoded.DecodedCache(other)._prefix}
    holder = ViewRenderer(other, whole.views)
    for shard in range(3):
        holder.view(shard, 0, 0, np.empty((32, 32, 3), np.uint8))
    assert (all_views(opened(whole.workspace, tmp_path, bound), whole.views) == expected).all()
    assert {path.name[:16] for path in tmp_path.glob("*.pixels")} == {decoded.DecodedCache(other)._prefix}


def test_pixels_of_another_decoder_are_not_taken(whole, tmp_path, decodes, monkeypatch):
    all_views(opened(whole.workspace, tmp_path), whole.views)
    monkeypatch.setattr(decoded, "DECODERS", {"simplejpeg": "0.0"})
    del decodes[:]
    all_views(opened(whole.workspace, tmp_path), whole.views)
    assert len(decodes) == 61


def test_a_shard_of_which_every_image_was_left_out_is_complete(whole, tmp_path):
    split = opened(whole.workspace, tmp_path)
    index = split.index(0)
    empty = replace(index, heights=index.heights[:0], widths=index.widths[:0])
    split.index = lambda _: empty
    assert decoded.DecodedCache(split).complete(0)


def test_a_bound_below_one_shard_is_refused_with_what_to_change(whole, tmp_path, refused):
    line = refused(all_views, opened(whole.workspace, tmp_path, 1e-6), whole.views)
    assert line.startswith("cache.decoded_gigabytes = 1e-06: one shard takes") and line.endswith("raise it")


def test_a_shard_whose_pixels_are_kept_is_not_copied_from_afar(bucket, whole, tmp_path):
    for path in Path(whole.workspace, "shards/train").rglob("*.*"):
        if path.is_file():
            name = path.relative_to(whole.workspace).as_posix()
            Store(bucket("ws")).put(name, path.read_bytes())
    all_views(opened(whole.workspace, tmp_path / "pixels"), whole.views)
    settings = CacheConfig(decoded=True, decoded_folder=str(tmp_path / "pixels"), folder=str(tmp_path / "tars"))
    split = Split.open(bucket("ws"), "train", settings)
    stream = Stream(split.rows, repeats=2, window=2, recipe_seed=0, seed=0)
    steps = TrainDataset(split, whole.views, stream, None, batch=16, rank=0, world=1)
    assert len(steps[0].views) == 16
    assert not list((tmp_path / "tars").glob("*.tar"))


# Processes that fill it


def filler(*arguments: object, room: bool = False) -> subprocess.Popen[str]:
    """A process that makes all views through the cache: this file, with a workspace, a recipe, a folder, and more."""
    words = [*(ROOM if room else ()), sys.executable, __file__, *map(str, arguments)]
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | path)


def said(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_killed_while_it_fills_leaves_nothing_that_counts(whole, tmp_path, decodes, expected, moment):
    process = filler(whole.workspace, whole.views.model_dump_json(), tmp_path, moment)
    process.communicate(timeout=120)
    assert process.returncode == -9
    left = [path.name for path in tmp_path.iterdir() if path.name != ".lock"]
    assert len(left) == 1 and left[0].endswith(".half" if moment == "setting aside" else ".pixels")
    del decodes[:]
    assert (all_views(opened(whole.workspace, tmp_path), whole.views) == expected).all()
    assert len(decodes) == (61 if moment == "setting aside" else 56), "five images were there"
    assert not list(tmp_path.glob(".*.half")) and len(lengths(tmp_path)) == 3


def test_two_commands_fill_it_at_once(whole, tmp_path, decodes, expected):
    fillers = [filler(whole.workspace, whole.views.model_dump_json(), tmp_path) for _ in range(2)]
    for process in fillers:
        assert said(process)["views"] == hashlib.sha256(expected.tobytes()).hexdigest()
    assert len(lengths(tmp_path)) == 3 and not list(tmp_path.glob(".*.half"))
    del decodes[:]
    assert (all_views(opened(whole.workspace, tmp_path), whole.views) == expected).all()
    assert decodes == []


def test_a_full_disk_is_one_line_and_with_room_made_the_same_views_come(whole, tmp_path, expected):
    tried = [*ROOM, "mount", "-t", "tmpfs", "none", "/tmp"]
    if not shutil.which(ROOM[0]) or subprocess.run(tried, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    found = said(filler(whole.workspace, whole.views.model_dump_json(), tmp_path, "full disk", room=True))
    assert found["refused"].startswith(f"cache.decoded_folder = {tmp_path}: cannot keep decoded images (No space left")
    assert "lower cache.decoded_gigabytes" in found["refused"] and "\n" not in found["refused"]
    assert found["halves"] == []
    assert found["views"] == hashlib.sha256(expected.tobytes()).hexdigest()


def die_at(moment: str) -> None:
    """Kill this process in the sixth image's pixels, before its sum is written, or when room is set aside."""
    write, count = os.pwrite, 0

    def pwrite(descriptor: int, content: memoryview, start: int) -> int:
        nonlocal count
        count += 1
        if count == 11 and moment == "pixels":
            write(descriptor, content[: len(content) // 2], start)
            os.kill(os.getpid(), 9)
        if count == 12 and moment == "before the sum":
            os.kill(os.getpid(), 9)
        return write(descriptor, content, start)

    os.pwrite = pwrite
    if moment == "setting aside":
        os.posix_fallocate = lambda *_: os.kill(os.getpid(), 9)


def main(workspace: str, recipe: str, folder: str, moment: str = "") -> dict:
    """Fill the cache, and say what the views are."""
    views, told = Recipe.model_validate_json(recipe), {}
    if moment in MOMENTS:
        die_at(moment)
    if moment == "full disk":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True)
        try:
            all_views(opened(workspace, Path(folder)), views)
        except UserError as error:
            told = {"refused": str(error), "halves": [path.name for path in Path(folder).glob(".*.half")]}
        subprocess.run(["mount", "-o", "remount,size=8m", folder], check=True)
    return told | {"views": hashlib.sha256(all_views(opened(workspace, Path(folder)), views).tobytes()).hexdigest()}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
