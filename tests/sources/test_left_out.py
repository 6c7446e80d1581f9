"""Nothing vanishes: what a source holds is written, skipped with its reason, or left out, counted and named."""

import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_wds import ReaderWds

from pipeline.commands import run as stages
from schemas.tables import LABELS
from schemas.visible import visible
from stages.sources.discover import list_source
from tests.support.hostile import folder, picture, samples, tar
from tests.support.world import command, run_file, silent, start

HIDDEN = (
    ".Trash-1000/x.jpg", ".ipynb_checkpoints/0-checkpoint.jpg", "a/._0.jpg", "a/@eaDir/0.jpg", "__MACOSX/a/0.jpg",
    "a/deep/.cache/0.jpg",
)  # fmt: skip


def put(root: Path, name: str, data: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)


def shard(tmp_path: Path, source: Path | str, **more) -> dict:
    """The manifest of a source's train split, bad images skipped."""
    settings = {"source": {"train": str(source), "val": ""} | more, "shards": {"on_bad_image": "skip"}}
    run = run_file(tmp_path / "ws", tmp_path, settings)
    stages.shard(run, silent)
    manifest = json.loads(Path(run.workspace, "shards/train/manifest.json").read_text())
    left_out = sum(one["count"] for one in manifest.get("left_out", ()))
    assert manifest["found"] == manifest["samples"] + len(manifest["skipped"]) + left_out
    return manifest


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_hidden_files_are_skipped_at_every_level_and_in_every_form(tmp_path, packed):
    root = folder(tmp_path / "x")
    members = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.jpg")}
    for name in HIDDEN:
        put(root, name, picture("c"))
    source = tar(tmp_path / "x.tar", members | dict.fromkeys(HIDDEN, picture("c"))) if packed else root
    manifest = shard(tmp_path, source)
    assert (manifest["classes"], manifest["samples"], manifest["skipped"]) == (["a", "b"], 6, [])
    assert manifest["left_out"] == [{"reason": "hidden", "count": 6, "first": min(HIDDEN)}]


def test_hidden_members_of_samples_and_class_tars_are_skipped(tmp_path):
    members = samples([b"0", b"1"]) | {"._00000.jpg": b"x", "._00000.cls": b"x", "__MACOSX/00001.jpg": b"x"}
    assert list_source(str(tar(tmp_path / "x.tar", members)), "train", None).other_files == 3
    inner = {kind: tar(tmp_path / kind, {f"{n}.jpg": picture(kind) for n in range(2)}).read_bytes() for kind in "ab"}
    outer = tar(tmp_path / "y.tar", {f"n{kind}.tar": data for kind, data in inner.items()} | {"._na.tar": b"x"})
    assert list_source(str(outer), "train", None).classes == ("na", "nb")


def test_links_to_nothing_or_to_folders_and_pipes_are_bad_images_with_a_name(tmp_path):
    root = folder(tmp_path / "x")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(root / "a/0.jpg", tmp_path / "elsewhere/more.jpg")
    (root / "a/gone.jpg").symlink_to("nowhere.jpg")
    (root / "a/folder").symlink_to(tmp_path / "elsewhere")
    (root / "a/good.jpg").symlink_to(tmp_path / "elsewhere/more.jpg")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(root / "a")
    (root / "lost").symlink_to("nowhere")
    os.mkfifo(root / "b/pipe.jpg")
    os.mkfifo(root / "b/pipe")
    manifest = shard(tmp_path, root)
    assert {one["name"]: one["reason"] for one in manifest["skipped"]} == {
        "a/gone.jpg": "is a link to nothing", "a/folder": "is a link to a folder, which is not followed",
        "again": "is a link to a folder, which is not followed", "lost": "is a link to nothing",
        "b/pipe.jpg": "is not a plain file",
    }  # fmt: skip
    assert (manifest["classes"], manifest["samples"]) == (["a", "b", "c"], 8)
    assert manifest["left_out"] == [{"reason": "no image (no suffix)", "count": 1, "first": "b/pipe"}]


def test_links_stop_the_stage_where_bad_images_do(tmp_path, refused):
    root = folder(tmp_path / "x")
    (root / "a/gone.jpg").symlink_to("nowhere.jpg")
    run = run_file(tmp_path / "ws", tmp_path, {"source": {"train": str(root), "val": ""}})
    assert "a/gone.jpg is a link to nothing" in refused(stages.shard, run, silent)


FORMS = {
    "tif": "TIFF",
    "gif": "GIF",
    "jfif": "JPEG",
    "avif": "AVIF",
    "ppm": "PPM",
    "bmp": "BMP",
    "ico": "ICO",
    "jp2": "JPEG2000",
}


def test_images_of_every_form_are_taken_under_a_suffix_that_readers_know(tmp_path):
    root = folder(tmp_path / "x", each=1)
    for suffix, form in FORMS.items():
        put(root, f"a/x.{suffix}", picture("a", form))
    put(root, "a/notes.txt", b"x")
    put(root, "a/raw.heic", b"x")
    put(root, "top.jpg", picture())
    manifest = shard(tmp_path, root)
    assert manifest["samples"] == len(FORMS) + 2 and not manifest["skipped"]
    assert [(one["reason"], one["count"], one["first"]) for one in manifest["left_out"]] == [
        ("image outside the class folders", 1, "top.jpg"), ("no image (.heic)", 1, "a/raw.heic"),
        ("no image (.txt)", 1, "a/notes.txt"),
    ]  # fmt: skip
    reader = ReaderWds(str(tmp_path / "ws/shards/train"), split="train", batch_size=1, is_training=False)
    colours = [np.asarray(image.convert("RGB")).mean((0, 1)) for image, _ in reader]
    assert len(colours) == manifest["samples"] and all(isinstance(one, np.ndarray) for one in colours)


def test_signatures_are_plain_binary_which_hugging_faces_datasets_reads():
    for schema in LABELS.values():
        assert str(schema.field("signature").type) == "binary"


def test_names_that_are_not_utf_8_give_a_line(tmp_path):
    root = folder(tmp_path / "x", each=1)
    os.mkdir(os.fsencode(root) + b"/\xe9")
    for name in (b"/a/\xe9.jpg", b"/a/\xe8.jpg", b"/\xe9/1.jpg"):
        shutil.copy(root / "b/0.jpg", os.fsdecode(os.fsencode(root) + name))
    manifest = shard(tmp_path, root)
    assert [one["reason"] for one in manifest["skipped"]] == ["has a name that is not UTF-8"] * 3
    assert manifest["classes"] == ["a", "b"]


def test_what_moves_a_terminal_is_shown_and_not_sent(tmp_path):
    root = folder(tmp_path / "x", each=1)
    put(root, "a/\x1b[2J\n.jpg", b"no image")
    put(root, "a/\x1b]0;owned\x07.txt", b"x")
    run = run_file(tmp_path / "ws", tmp_path, {"source": {"train": str(root), "val": ""}})
    process = start(command("shard", config=run, folder=tmp_path))
    out, err = process.communicate()
    assert process.returncode == 1 and "\x1b" not in out + err
    assert r"a/\x1b[2J\n.jpg is not an image" in err and r"such as a/\x1b]0;owned\x07.txt" in err
    assert visible("猫 🐈‍⬛\tÄ\u202egpj", keep="\t") == "猫 🐈‍⬛\tÄ\\u202egpj"


# ---- said before anything is written, and warned of


def test_what_a_source_is_is_said_in_one_line_before_anything_is_written(tmp_path, capsys, refused):
    for number in range(2):
        tar(tmp_path / f"wds/{number:05d}.tar", samples([b"cat", b"dog"], 2 * number))
    (tmp_path / "wds/names.json").write_text("{}")
    (tmp_path / "names").write_text("dog\ncat\nbird")
    shard(tmp_path, tmp_path / "wds", classes=str(tmp_path / "names"))
    said = capsys.readouterr().err.splitlines()
    context = f"source.train = {tmp_path}/wds"
    assert said[0] == (
        f"{context}: 2 tars of WebDataset samples, classes from .cls, 3 names from source.classes = {tmp_path}/names, "
        "4 images"
    )
    assert said[1] == f"{context}: 1 folders or files beside that are left out: names.json"
    bad = run_file(tmp_path / "bad", tmp_path, {"source": {"train": str(tar(tmp_path / "x.tar", samples([b"-1"])))}})
    refused(stages.shard, bad, silent)
    assert not Path(bad.workspace).exists()


def test_images_that_train_and_val_share_are_warned_of_by_name_and_by_content(tmp_path, capsys):
    folder(tmp_path / "train", each=3)
    folder(tmp_path / "val", each=3, seed=100)
    shutil.copy(tmp_path / "train/b/2.jpg", tmp_path / "val/a/other.jpg")
    source = {"train": str(tmp_path / "train"), "val": str(tmp_path / "val")}
    run = run_file(tmp_path / "ws", tmp_path, {"source": source})
    stages.shard(run, silent)
    err = capsys.readouterr().err
    assert "warning: 6 of val's 7 images are called as images of train are, such as a/0.jpg" in err
    assert "warning: 1 of val's 7 images are in train too, byte for byte: a/other.jpg of val is b/2.jpg of train" in err
    stages.shard(run, silent)
    assert "byte for byte" not in capsys.readouterr().err


def of_checksum(data: bytes, wanted: int) -> bytes:
    """Data with four bytes after it that give the whole a CRC-32: it is linear in them."""
    zero = zlib.crc32(data + bytes(4))
    rows = {}  # highest bit of what a combination of the 32 bits changes → (that change, the combination)
    for bit in range(32):
        change, mask = zlib.crc32(data + (1 << bit).to_bytes(4, "little")) ^ zero, 1 << bit
        while change and change.bit_length() in rows:
            other, bits = rows[change.bit_length()]
            change, mask = change ^ other, mask ^ bits
        rows[change.bit_length()] = change, mask
    change, mask = wanted ^ zero, 0
    while change:
        other, bits = rows[change.bit_length()]
        change, mask = change ^ other, mask ^ bits
    return data + mask.to_bytes(4, "little")


def test_images_of_one_length_and_checksum_are_shared_only_where_their_bytes_are(tmp_path, capsys):
    folder(tmp_path / "train", each=2)
    folder(tmp_path / "val", each=2, seed=100)
    image = (tmp_path / "train/b/1.jpg").read_bytes()
    (tmp_path / "train/b/1.jpg").write_bytes(image + bytes(8))
    (tmp_path / "val/a/other.jpg").write_bytes(twin := of_checksum(image + b"else", zlib.crc32(image + bytes(8))))
    assert zlib.crc32(twin) == zlib.crc32(image + bytes(8)) and len(twin) == len(image) + 8
    stages.shard(run_file(tmp_path / "ws", tmp_path), silent)
    assert "byte for byte:" not in capsys.readouterr().err


def test_images_that_are_never_labelled_are_counted(tmp_path):
    said: list[str] = []
    source = {"train": str(folder(tmp_path / "x", "abc", each=1)), "val": ""}
    stages.shard(
        run_file(tmp_path / "ws", tmp_path, {"source": source, "shards": {"samples_per_shard": 2}}), said.append
    )
    assert "train: 1 images are alone in their shard and never labelled or trained on" in said
    said.clear()
    stages.shard(
        run_file(tmp_path / "w2", tmp_path, {"source": source, "shards": {"samples_per_shard": 3}}), said.append
    )
    assert "train: 1 shards have an odd number of images, one of which sits out each pass" in said


def test_a_tiff_of_sixteen_bits_is_written_with_its_own_bytes(tmp_path):
    root = folder(tmp_path / "x", each=1)
    wide = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (40, 1))
    Image.fromarray(wide).save(root / "a/wide.tif")
    assert shard(tmp_path, root)["samples"] == 3
    assert (root / "a/wide.tif").read_bytes() in (tmp_path / "ws/shards/train/shard-000000.tar").read_bytes()
