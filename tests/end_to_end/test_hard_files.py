"""Hard files from end to end: nothing is lost unsaid, however parts are dealt, and good bytes stay untouched."""

import io
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.commands import run as stages
from schemas.tables import SKIPPED
from stages.data.split import Split
from tests.support.images import WHOLE, picture, saved
from tests.support.sources import sample_tars
from tests.support.world import run_file, silent

LONG = "n" * 180


@pytest.fixture
def hard(tmp_path) -> Path:
    """Two classes with whole images of every form, under hard names, and seven bad ones spread over both."""
    root = tmp_path / "hard"
    for name in ("été", "深い"):
        (root / name).mkdir(parents=True)
        for form, (make, _) in WHOLE.items():
            (root / name / f"{form}.jpg").write_bytes(make())  # PNGs are among them
        (root / name / f"{LONG}.JPEG").write_bytes(saved(picture()))
        (root / name / "empty.jpg").write_bytes(b"")
        (root / name / "text.jpg").write_bytes(b"this is no image\n" * 9)
        (root / name / "cut.jpg").write_bytes(saved(picture((400, 300)), quality=95)[:9000])
    bomb = bytearray(saved(picture()))
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = b"\xff\x00\xff\x00"
    (root / "été/bomb.jpg").write_bytes(bytes(bomb))
    return root


@pytest.mark.parametrize("address", ["inline", "local"])
def test_found_is_written_and_skipped_with_bad_files_all_over_the_parts(hard, tmp_path, address):
    settings = {"shards": {"samples_per_shard": 3, "on_bad_image": "skip"}, "cluster": {"address": address, "cpus": 2}}
    run = run_file(tmp_path / "ws", tmp_path, settings, {"source": {"train": str(hard), "val": ""}})
    stages.shard(run, silent)
    folder = Path(run.workspace, "shards/train")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["found"] == manifest["samples"] + len(manifest["skipped"]) == 2 * len(WHOLE) + 2 + 7
    table = pq.read_table(folder / "skipped.parquet")
    assert table.schema == SKIPPED and table.to_pylist() == manifest["skipped"]
    reasons = {one["name"].split("/")[1]: one["reason"] for one in manifest["skipped"]}
    assert reasons["empty.jpg"] == "is empty" and reasons["text.jpg"] == "is not an image"
    assert "truncated" in reasons["cut.jpg"] and "decompression bomb" in reasons["bomb.jpg"]
    split = Split.open(run.workspace, "train")
    kept = {name: split.image(s, r) for s in range(len(split.rows)) for r, name in enumerate(split.index(s).names)}
    assert len(kept) == len(split) == 2 * len(WHOLE) + 2
    assert all(data == (hard / name).read_bytes() for name, data in kept.items())


def test_a_stop_names_all_bad_files_that_were_found(hard, tmp_path, refused):
    settings = {"source": {"train": str(hard), "val": ""}, "shards": {"samples_per_shard": 100}}
    line = refused(stages.shard, run_file(tmp_path / "ws", tmp_path, settings), silent)
    assert all(f"{name}/{bad}.jpg" in line for name in ("été", "深い") for bad in ("empty", "text", "cut"))
    assert "été/bomb.jpg" in line


def test_longer_images_are_re_encoded_where_that_is_asked_for_and_the_manifest_says_so(images, tmp_path):
    run = run_file(tmp_path / "ws", images, {"shards": {"max_side": 40}, "source": {"val": ""}})
    stages.shard(run, silent)
    split = Split.open(run.workspace, "train")
    manifest = json.loads(Path(run.workspace, "shards/train/manifest.json").read_text())
    assert manifest["made_from"]["shards"]["max_side"] == 40
    for shard in range(len(split.rows)):
        index = split.index(shard)
        for row, name in enumerate(index.names):
            data, original = split.image(shard, row), Path(run.source.train, name).read_bytes()
            with Image.open(io.BytesIO(original)) as before, Image.open(io.BytesIO(data)) as after:
                assert after.size == (index.widths[row], index.heights[row]) and max(after.size) <= 40
                assert (data == original) == (max(before.size) <= 40)


def test_adopted_tars_are_labelled_and_trained_from_where_they_lie(images, whole, tmp_path):
    source = {"source": {"train": sample_tars(images / "train", tmp_path / "theirs"), "val": ""}}
    run = run_file(tmp_path / "ws", images, source, {"shards": {"adopt": True}})
    stages.shard(run, silent)
    assert not list(Path(run.workspace).rglob("*.tar"))
    shutil.copytree(Path(whole.workspace, "runs/teacher"), tmp_path / "ws/runs/teacher")
    assert stages.label(run, silent)["decisions"] > 0
    assert stages.train(run, silent)["steps"] == stages.train(run, silent)["resumed_from_step"] > 0
