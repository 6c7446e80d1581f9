"""More of other people's sources: names that look alike, incomplete sets of files, folds, labels of flat images."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.sources.class_labels import read_labels
from stages.sources.discover import list_source
from tests.support.hostile import folder, parquet, picture, samples, tar


def put(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture("abc"[number % 3], seed=number))
    return root


# ---- names of classes


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("caf\xe9", "cafe\u0301"), "differ only in spaces or in their Unicode form"),
        (("a", "a "), "differ only in spaces or in their Unicode form"),
        (("a\nb", "c"), "holds control characters"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_classes_that_look_alike_are_refused(tmp_path, refused, names, says, packed):
    root = put(tmp_path / "x", *(f"{name}/0.jpg" for name in names))
    members = {f"{name}/0.jpg": picture(seed=number) for number, name in enumerate(names)}
    source = tar(tmp_path / "x.tar", members) if packed else root
    assert says in refused(list_source, str(source), "train", None)


def test_classes_that_differ_in_case_are_two_and_reported(tmp_path):
    listing = list_source(str(put(tmp_path, "Cat/0.jpg", "cat/0.jpg")), "train", None)
    assert listing.classes == ("Cat", "cat")
    assert listing.warnings == ("the class names Cat and cat differ only in case, and are two classes",)


def test_a_validation_class_in_another_unicode_form_is_named_beside_its_twin(tmp_path, refused):
    source = str(put(tmp_path, "cafe\u0301/0.jpg", "b/0.jpg"))
    line = refused(list_source, source, "val", ("b", "caf\xe9"))
    assert r"which has 'caf\xe9' where this is 'cafe\u0301'" in line


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a", "a"], "two classes are called a"),
        (["a", ""], "class 1 has an empty name"),
        (["a", None], "class 1 has an empty name"),
    ],
)
def test_class_names_of_parquet_that_merge_or_lack_a_class_are_refused(tmp_path, refused, names, says):
    source = str(parquet(tmp_path / "x.parquet", pa.array([0, 1]), names))
    assert says in refused(list_source, source, "train", None)
    listing = list_source(source, "train", ("n01", "n02"))  # as the message advises
    assert listing.images["class"].to_pylist() == [0, 1]


def test_names_that_files_give_keep_their_order_and_those_without_images_are_reported(tmp_path):
    listing = list_source(str(parquet(tmp_path / "x.parquet", pa.array([0, 1]), ["10", "9", "8"])), "train", None)
    assert listing.classes == ("10", "9", "8")
    assert listing.warnings == ("1 of 3 classes have no images, such as 8",)


def test_a_class_without_images_says_what_was_left_out(tmp_path, refused):
    (folder(tmp_path) / "c").mkdir()
    (tmp_path / "c/0.heic").write_bytes(b"x")
    line = refused(list_source, str(tmp_path), "train", None)
    assert "class c has no images, but 1 no image (.heic) (such as c/0.heic)" in line


# ---- sets of files


def numbered(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        labels = pa.array([0, 1])
        if name.endswith(".tar"):
            tar(root / name, samples([b"0", b"1"], start=2 * number))
        else:
            parquet(root / name, labels)
    return root


@pytest.mark.parametrize(
    "name", ["train-{:05d}-of-00003.parquet", "shard-{:05d}-of-00003.tar", "d_{}_of_3-ab12.parquet"]
)
def test_a_file_that_is_missing_of_a_numbered_set_is_refused_or_with_a_pattern_reported(tmp_path, refused, name):
    numbered(tmp_path, name.format(0), name.format(2))
    line = refused(list_source, str(tmp_path), "train", None)
    assert "1 of 3 files are missing, such as number 1" in line
    pattern = line.rpartition("such as ")[2]  # as the message advises
    listing = list_source(pattern, "train", None)
    assert len(listing.images) == 4 and "1 of 3 files are missing" in listing.warnings[0]
    numbered(tmp_path, name.format(0), name.format(1), name.format(2))
    assert list_source(str(tmp_path), "train", None).warnings == ()


def test_a_set_counted_from_one_is_whole(tmp_path):
    numbered(tmp_path, "x-00001-of-00002.parquet", "x-00002-of-00002.parquet")
    assert list_source(str(tmp_path), "train", None).warnings == ()


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("train-00000-of-00001-aa.parquet", "train-00000-of-00001-bb.parquet"),
    ],
)
def test_files_of_two_exports_are_not_read_together(tmp_path, refused, names):
    numbered(tmp_path, *names)
    for source in (tmp_path, tmp_path / "*.parquet"):
        assert "of two exports; remove one set" in refused(list_source, str(source), "train", None)


# ---- folds


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_folders_that_all_hold_the_same_folders_are_refused_unless_they_are_listed(tmp_path, refused, packed):
    names = [f"fold{fold}/{name}/{fold}.jpg" for fold in range(2) for name in "ab"]
    root = put(tmp_path / "x", *names)
    source = tar(tmp_path / "x.tar", {name: picture(seed=seed) for seed, name in enumerate(names)}) if packed else root
    line = refused(list_source, str(source), "train", None)
    assert "fold0 and fold1 both hold the folders a, b: which are the classes?" in line
    assert list_source(f"{source}/fold0", "train", None).classes == ("a", "b")
    assert list_source(str(source), "train", ("fold0", "fold1")).classes == ("fold0", "fold1")


def test_one_folder_in_each_class_is_no_choice(tmp_path):
    listing = list_source(str(put(tmp_path, "a/images/0.jpg", "b/images/0.jpg")), "train", None)
    assert listing.classes == ("a", "b")


# ---- columns of Parquet


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (("img", "label"), "image is missing; rename or convert the columns that are meant; it has img, label"),
        (("image", "fine_label"), "label is missing; rename"),
        (("img", "fine_label"), "image is missing and label is missing; rename"),
    ],
)
def test_the_column_that_is_wrong_is_named_and_no_other(tmp_path, refused, columns, says):
    table = pq.read_table(parquet(tmp_path / "x.parquet", pa.array([0, 1])))
    pq.write_table(table.rename_columns(list(columns)), tmp_path / "x.parquet")
    assert f"but {says}" in refused(list_source, str(tmp_path / "x.parquet"), "train", None)


# ---- labels of flat images


def test_labels_name_images_with_or_without_a_suffix(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("ImageId,PredictionString\nv0.jpg,a 1 2 3 4\nv1,b 1 2 3 4\n")
    listing = list_source(str(put(tmp_path / "val", "v0.jpg", "v1.jpg")), "val", ("a", "b"), read_labels(str(file)))
    assert listing.images["class"].to_pylist() == [0, 1]


def test_two_images_that_one_label_could_be_of_are_refused(tmp_path, refused):
    file = tmp_path / "labels.csv"
    file.write_text("ImageId,PredictionString\nv0,a\n")
    source = str(put(tmp_path / "val", "v0.jpg", "v0.png"))
    line = refused(list_source, source, "val", ("a", "b"), read_labels(str(file)))
    assert "names the class of v0 once" in line


def test_a_table_of_other_columns_is_refused_by_the_column(tmp_path, refused):
    (tmp_path / "labels.csv").write_text("filename\tlabel\nv0\ta\n")
    assert "has no column ImageId" in refused(read_labels, str(tmp_path / "labels.csv"))


def test_a_description_without_names_is_none(tmp_path):
    path = parquet(tmp_path / "x.parquet", pa.array([0, 1]))
    about = {"info": {"features": {"label": {"_type": "ClassLabel", "names": None}}}}
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(about)}), path)
    assert list_source(str(path), "train", None).classes == ("0", "1")
