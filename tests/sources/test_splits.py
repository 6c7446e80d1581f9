"""Of a source with several splits, each is itself alone; a class may have a split's word in its name."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.hostile import folder, listed, names, parquet, picture, samples, tar


def around(out: Path) -> str:
    for split in ("train", "val"):
        folder(out / "x/photos" / split)
    return str(out / "x")


def around_in_a_tar(out: Path) -> str:
    members = {f"./photos/{s}/{k}/{n}.jpg": picture(k) for s in ("train", "val") for k in "ab" for n in range(3)}
    return str(tar(out / "x.tar", members))


def third_beside(out: Path) -> str:
    for split in ("Train", "train_small", "Validation", "test"):
        folder(out / split)
    return str(out)


def words_in_names(out: Path) -> str:
    for split in ("train", "test", "pred"):
        folder(out / f"seg_{split}/seg_{split}")
    return str(out)


def words_and_years_in_a_tar(out: Path) -> str:
    members = {f"{s}2017/{k}/{n}.jpg": picture(k) for s in ("train", "val") for k in "ab" for n in range(3)}
    return str(tar(out / "x.tar", members))


def class_tars_by_split(out: Path) -> str:
    inner = {kind: tar(out / kind, {f"{n}.jpg": picture(kind) for n in range(3)}).read_bytes() for kind in "ab"}
    return str(tar(out / "x.tar", {f"{split}/{kind}.tar": inner[kind] for split in ("train", "val") for kind in "ab"}))


SPLIT = [around, around_in_a_tar, third_beside, words_in_names, words_and_years_in_a_tar, class_tars_by_split]


@pytest.mark.parametrize("make", SPLIT, ids=lambda make: make.__name__)
def test_each_split_is_itself_alone(tmp_path, make):
    source = make(tmp_path)
    for split in ("train", "val"):
        listing = listed(source, split)
        assert listing.classes == ("a", "b")
        assert names(listing) == [f"{kind}/{n}.jpg" for kind in "ab" for n in range(3)]
        assert listing.beside


def test_a_path_into_a_tar_counts_for_samples_too_and_their_keys_stay(tmp_path):
    members = samples([b"0", b"1"], 0, "train/") | samples([b"0"], 7, "val/")
    source = tar(tmp_path / "x.tar", members)
    for value, split in ((f"{source}/train", "train"), (source, "train")):
        assert names(listed(value, split)) == ["x.tar/train/00000.jpg", "x.tar/train/00001.jpg"]
    assert names(listed(source, "val")) == ["x.tar/val/00007.jpg"]


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_of_files_called_after_splits_in_one_folder_those_of_the_split_are_taken(tmp_path, suffix):
    for number, split in enumerate(("train", "validation", "test")):
        path = tmp_path / f"photos-{split}-00000-of-00001.{suffix}"
        if suffix == "tar":
            tar(path, samples([b"0", b"1"], 10 * number))
        else:
            parquet(path, pa.array([0, 1]))
    for split, file in (("train", "train"), ("val", "validation")):
        listing = listed(tmp_path, split)
        assert all(name.startswith(f"photos-{file}-00000") for name in names(listing)) and len(names(listing)) == 2
        assert len(listing.beside) == 2


def test_class_tars_whose_names_end_in_numbers_are_class_tars(tmp_path):
    for name in ("cat_1", "dog_2", "n01440764"):
        tar(tmp_path / f"{name}.tar", {f"{n}.jpg": picture() for n in range(2)})
    assert listed(tmp_path).classes == ("cat_1", "dog_2", "n01440764")


def test_the_folder_of_the_official_archives_is_read_by_split(tmp_path, refused):
    inner = {kind: tar(tmp_path / kind, {f"{n}.JPEG": picture(kind) for n in range(3)}).read_bytes() for kind in "ab"}
    archives = tmp_path / "archives"
    tar(archives / "ILSVRC2012_img_train.tar", {f"n{kind}.tar": data for kind, data in inner.items()})
    tar(archives / "ILSVRC2012_img_val.tar", {"ILSVRC2012_val_00000001.JPEG": picture()})
    (archives / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"\x1f\x8b\x08 rubbish")
    assert listed(archives).classes == ("na", "nb")
    assert "its images have no classes; name them with source.val_labels" in refused(listed, archives, "val")


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_folders_of_tars_or_parquet_are_split_like_folders_of_images(tmp_path, suffix):
    for number, split in enumerate(("train", "val")):
        path = tmp_path / f"default/{split}/0000.{suffix}"
        tar(path, samples([b"0", b"1"], 10 * number)) if suffix == "tar" else parquet(path, pa.array([0, 1]))
    listing = listed(tmp_path)
    assert len(names(listing)) == 2 and listing.what.startswith("in default/train/, 1 ")


def test_classes_with_a_splits_word_in_their_names_are_classes(tmp_path):
    folder(tmp_path / "x", ["test_tube", "train_station", "validation_stamp", "cat"])
    assert len(listed(tmp_path / "x").classes) == 4


def test_a_class_that_is_called_train_among_others_is_a_class(tmp_path):
    folder(tmp_path / "x", ["apple", "bee", "train"])
    assert listed(tmp_path / "x").classes == ("apple", "bee", "train")
    for name in ("apple", "bee", "train"):
        tar(tmp_path / f"y/{name}.tar", {f"{n}.jpg": picture() for n in range(2)})
    assert listed(tmp_path / "y").classes == ("apple", "bee", "train")
    folder(tmp_path / "z", ["test", "train", "apple"])
    assert listed(tmp_path / "z", classes=("apple", "test", "train")).classes == ("apple", "test", "train")
