"""Sources and shards: the same listing, tar and index on every machine, and no bad image unnoticed."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image
from timm.data import ImageNetInfo

from pipeline.commands import run as stages
from pipeline.commands import shard as sharding
from schemas.config import ShardsConfig
from schemas.errors import UserError
from schemas.tables import INDEX
from stages.data.split import Split
from stages.shard.plan import plan_shards
from stages.shard.tar import tar_header
from stages.shard.writer import check_image
from stages.sources.class_labels import read_classes
from stages.sources.discover import list_source
from tests.support.world import CLASSES, command, silent, stored


def names(images) -> list[str]:
    """The names in a listing, or a part of one."""
    return images["name"].to_pylist()


def spoil(images: Path, root: Path) -> list[str]:
    """Copy an image folder and put unreadable images into it; their names."""
    shutil.copytree(images, root)
    good = (root / "train/red/000.jpg").read_bytes()
    bad = {"red/cut.jpg": good[: len(good) // 2], "blue/empty.jpg": b"", "green/text.jpg": b"this is no image\n" * 9}
    for name, data in bad.items():
        (root / "train" / name).write_bytes(data)
    return sorted(bad)


def test_a_listing_is_sorted_and_does_not_depend_on_the_root_or_the_file_systems_order(images, tmp_path):
    listing = list_source(str(images / "train"), "train", None)
    shutil.copytree(images / "train", tmp_path / "moved")
    moved = list_source(str(tmp_path / "moved"), "train", None)
    assert listing.classes == CLASSES
    assert names(listing.images) == sorted(names(listing.images)) and len(names(listing.images)) == 61
    assert listing.fingerprint() == moved.fingerprint()
    with (tmp_path / "moved/red/000.jpg").open("ab") as file:
        file.write(b"x")
    assert list_source(str(tmp_path / "moved"), "train", None).fingerprint() != listing.fingerprint()


def test_images_in_folders_below_a_class_count_and_other_files_are_counted(images, tmp_path):
    root = tmp_path / "train"
    shutil.copytree(images / "train", root)
    (root / "red/deep").mkdir()
    shutil.move(root / "red/003.jpg", root / "red/deep/003.JPEG")
    (root / "red/notes.txt").write_text("x")
    (root / "red/.hidden.jpg").write_text("x")
    (root / ".git").mkdir()
    listing = list_source(str(root), "train", None)
    assert "red/deep/003.JPEG" in names(listing.images)
    assert (len(listing.images), listing.other_files) == (61, 2)


def test_class_numbers_follow_the_file_of_names_where_there_is_one(images, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("red\n\npurple\ngrey\ngreen\nblue\n")
    classes = read_classes(str(file))
    assert classes == ("red", "purple", "grey", "green", "blue")
    listing = list_source(str(images / "train"), "train", classes)
    rows = listing.images.to_pylist()
    assert {row["name"].split("/")[0]: row["class"] for row in rows} == {"red": 0, "grey": 2, "green": 3, "blue": 4}


def test_imagenets_classes_are_timms_thousand():
    assert read_classes("imagenet-1k") == tuple(ImageNetInfo("imagenet-1k").label_names())


def test_sharding_loads_no_torch_which_alone_takes_half_a_gigabyte(fresh, tmp_path):
    loaded = "print(sorted({'torch', 'timm'} & {*sys.modules}))"
    verb = f"import sys, cli; sys.argv = sys.argv[1:]\ntry: cli.main()\nfinally: {loaded}"
    arguments = command("shard", config=fresh({"source": {"val": ""}}), folder=tmp_path)
    done = subprocess.run([sys.executable, "-c", verb, *arguments[2:]], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert list(Path(fresh().workspace, "shards/train").glob("*.tar"))


@pytest.mark.parametrize(
    ("text", "says"), [("", "is empty"), ("a\nb\na\n", "names a twice"), (None, "cannot be read (")]
)  # fmt: skip
def test_a_bad_file_of_class_names_is_refused(tmp_path, refused, text, says):
    file = tmp_path / "names.txt"
    if text is not None:
        file.write_text(text)
    line = refused(read_classes, str(file))
    assert line.startswith(f"source.classes = {file}: ") and says in line


def test_shards_are_nearly_equal_and_hold_every_image_once(images):
    listing = list_source(str(images / "train"), "train", None)
    specs = plan_shards(listing, ShardsConfig(samples_per_shard=13), shuffle=True)
    assert [len(spec.images) for spec in specs] == [13, 12, 12, 12, 12]
    assert sorted(name for spec in specs for name in names(spec.images)) == names(listing.images)
    assert all(len(set(spec.images["class"].to_pylist())) > 1 for spec in specs)
    other = plan_shards(listing, ShardsConfig(samples_per_shard=13, seed=1), shuffle=True)
    assert [names(spec.images) for spec in other] != [names(spec.images) for spec in specs]


def test_the_index_finds_every_images_untouched_bytes_in_the_tar(whole):
    folder = Path(whole.workspace, "shards/train")
    for tar in sorted(folder.glob("*.tar")):
        table = pq.read_table(tar.with_suffix(".parquet"))
        assert table.schema == INDEX
        data = tar.read_bytes()
        for row in table.to_pylist():
            original = Path(whole.source.train, row["name"]).read_bytes()
            assert data[row["offset"] : row["offset"] + row["size"]] == original
            with Image.open(io.BytesIO(original)) as image:
                assert image.size == (row["width"], row["height"])
            assert row["name"].startswith(CLASSES[row["class"]])


def test_webdataset_reads_the_shards_as_anybody_would(whole):
    tars = sorted(str(tar) for tar in Path(whole.workspace, "shards/train").glob("*.tar"))
    samples = list(wds.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert len(samples) == 61
    for sample in samples:
        name = json.loads(sample["json"])["name"]
        assert CLASSES[int(sample["cls"])] == name.split("/")[0]
        assert sample["png" if name.endswith("png") else "jpg"] == Path(whole.source.train, name).read_bytes()


def test_nothing_of_the_machine_enters_a_tar(whole):
    with tarfile.open(Path(whole.workspace, "shards/train/shard-000000.tar")) as tar:
        about = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert {one[:5] for one in about} == {(0, 0, 0, "", "")}
    assert len(about) == 1


@pytest.mark.parametrize("size", [0, 1, 511, 110_000, 2**33 - 1])
def test_a_members_header_is_the_one_that_tarfile_makes(size):
    for name in ("000000-0000000.jpg", "012345-0999999.webp", "x" * 100):
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o444
        assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_moved_images_and_other_processes_make_the_same_shards(fresh, images, whole, tmp_path):
    shutil.copytree(images, tmp_path / "moved")
    for number, file in enumerate((tmp_path / "moved").rglob("*.*")):
        os.utime(file, (number, number))
    source = {"train": str(tmp_path / "moved/train"), "val": str(tmp_path / "moved/val")}
    stages.shard(fresh({"source": source}, {"cluster": {"cpus": 1}}), silent)
    for split in ("train", "val"):
        assert stored(Path(fresh().workspace, "shards", split)) == stored(Path(whole.workspace, "shards", split))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: b"text" * 99, "is not an image"),
        (lambda data: data[:-30], "truncated"),
    ],
)
def test_an_image_that_cannot_be_decoded_to_its_last_row_is_bad(images, damage, says):
    data = (images / "train/red/000.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert check_image(data) == (*image.size[::-1], ".jpeg")
    with pytest.raises(ValueError, match=says):
        check_image(damage(data))


def test_unreadable_images_stop_the_stage_in_one_line_that_names_them_and_nothing_counts_as_done(
    fresh, images, tmp_path, refused
):
    bad = spoil(images, tmp_path / "spoilt")
    run = fresh({"source": {"train": str(tmp_path / "spoilt/train")}, "shards": {"samples_per_shard": 100}})
    line = refused(stages.shard, run, silent)
    assert line.startswith("unreadable images: ")
    assert all(name in line for name in bad)
    assert stored(Path(run.workspace)).keys() == {"shards/train/plan.json"}


def test_skipped_images_are_listed_and_found_is_written_and_skipped(fresh, images, tmp_path):
    bad = spoil(images, tmp_path / "spoilt")
    skip = fresh({"source": {"train": str(tmp_path / "spoilt/train")}, "shards": {"on_bad_image": "skip"}})
    result = stages.shard(skip, silent)["splits"]["train"]
    manifest = json.loads(Path(skip.workspace, "shards/train/manifest.json").read_text())
    assert (result["samples"], result["skipped"]) == (61, 3)
    assert sorted(one["name"] for one in manifest["skipped"]) == bad
    assert {one["reason"].split(" (")[0] for one in manifest["skipped"]} >= {"is empty", "is not an image"}
    split = Split.open(skip.workspace, "train")
    assert sum(split.rows) == len(split) == 61
    assert not {name for shard in range(3) for name in split.index(shard).names} & set(bad)


def test_what_the_refusal_of_a_bad_image_tells_to_do_works(fresh, images, tmp_path, refused):
    bad = spoil(images, tmp_path / "spoilt")
    source = {"source": {"train": str(tmp_path / "spoilt/train")}}
    refused(stages.shard, fresh(source), silent)
    assert stages.shard(fresh(source, {"shards": {"on_bad_image": "skip"}}), silent)["splits"]["train"]["skipped"] == 3
    line = refused(stages.shard, fresh(source), silent, code=4)
    assert "was made without 3 unreadable images" in line
    shutil.rmtree(Path(fresh().workspace, "shards"))
    refused(stages.shard, fresh(source, {"shards": {"samples_per_shard": 100}}), silent)
    for name in bad:
        (tmp_path / "spoilt/train" / name).unlink()
    assert stages.shard(fresh(source), silent)["splits"]["train"]["samples"] == 61


def test_a_source_of_which_nothing_can_be_read_is_refused(fresh, tmp_path, refused):
    (tmp_path / "bad/a").mkdir(parents=True)
    (tmp_path / "bad/a/x.jpg").write_bytes(b"")
    run = fresh({"source": {"train": str(tmp_path / "bad"), "val": ""}, "shards": {"on_bad_image": "skip"}})
    assert "none of its 1 images can be read" in refused(stages.shard, run, silent)
    assert not Path(run.workspace, "shards/train/manifest.json").exists()


def test_run_takes_a_whole_split_as_it_is_and_does_not_list_its_source_again(copied, images, monkeypatch, tmp_path):
    def listed(_):
        raise UserError("the source is listed")

    stages.shard(copied(), silent)
    monkeypatch.setattr(sharding, "list_sources", listed)
    said = []
    found = sharding.sharded(copied(), said.append)
    assert {name: split["new_parts"] for name, split in found["splits"].items()} == {"train": 0, "val": 0}
    assert said[-1] == "the source was not listed again; `deit-pipeline shard` does that"
    others = [{"source": {"train": str(tmp_path)}}, {"shards": {"seed": 1}}]
    for change in others:
        assert sharding.sharded(copied(change), silent) is None
    Path(copied().workspace, "shards/val/shard-000000.tar").unlink()
    with pytest.raises(UserError, match="the source is listed"):
        stages.everything(copied(), silent)


CHANGES = {
    "shards.samples_per_shard: 21 -> 20": {"shards": {"samples_per_shard": 20}},
    "shards.seed: 0 -> 1": {"shards": {"seed": 1}},
    'classes: ["blue", "green", "grey", "red"] -> ["red", "grey", "green", "blue"]': "names",
    "images: ": "images",
}


@pytest.mark.parametrize("says", CHANGES)
def test_a_changed_source_or_setting_against_the_shards_exits_4_and_says_what_differs(
    copied, images, tmp_path, refused, says
):
    change = CHANGES[says]
    if change == "names":
        (tmp_path / "names").write_text("red\ngrey\ngreen\nblue\n")
        change = {"source": {"classes": str(tmp_path / "names")}}
    elif change == "images":
        shutil.copytree(images, tmp_path / "more")
        shutil.copy(images / "train/red/000.jpg", tmp_path / "more/train/red/new.jpg")
        change = {"source": {"train": str(tmp_path / "more/train")}}
    before = stored(Path(copied().workspace))
    line = refused(stages.shard, copied(change), silent, code=4)
    assert f"{copied().workspace}/shards/train was made differently (" in line
    assert says in line
    assert stored(Path(copied().workspace)) == before
