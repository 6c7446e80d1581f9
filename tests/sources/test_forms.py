"""What a source is, all of it decides: mixtures and double readings are refused, and each split is itself alone."""

from pathlib import Path

import pyarrow as pa
import pytest

from stages.sources.discover import list_source
from stages.sources.listing import Listing
from tests.support.hostile import folder, parquet, picture, samples, tar


def listed(path: Path | str, split: str = "train", classes: tuple[str, ...] | None = None) -> Listing:
    return list_source(str(path), split, classes)


def names(listing: Listing) -> list[str]:
    return listing.images["name"].to_pylist()


# ---- forms


def image_text(out: Path) -> str:
    for shard in range(2):
        tar(out / f"{shard:05d}.tar", {f"{n:04d}.{s}": picture() for n in range(4) for s in ("jpg", "json", "txt")})
    return str(out)


def images_only_shards(out: Path) -> str:
    for shard in range(3):
        tar(out / f"train-{shard:06d}.tar", {f"{shard}{n}.jpg": picture() for n in range(3)})
    return str(out)


def labels_from_the_second_tar_on(out: Path) -> str:
    tar(out / "0.tar", {f"{n}.jpg": picture() for n in range(3)})
    tar(out / "1.tar", samples([b"0", b"1"]))
    return str(out / "{0..1}.tar")


def dotted_keys(out: Path) -> str:
    return str(tar(out / "x.tar", {"photo.v1.jpg": picture(), "photo.v1.cls": b"0"}))


def a_tar_among_images(out: Path) -> str:
    stray = tar(out / "stray", {"x.jpg": picture()}).read_bytes()
    return str(tar(out / "x.tar", {"stray.tar": stray, "a/1.jpg": picture(), "b/1.jpg": picture("b")}))


def shards_in_a_tar(out: Path) -> str:
    inner = tar(out / "inner", samples([b"0", b"1"])).read_bytes()
    return str(tar(out / "x.tar", {"n1.tar": inner, "n2.tar": inner}))


def splits_as_inner_tars(out: Path) -> str:
    inner = tar(out / "inner", {"x.jpg": picture()}).read_bytes()
    return str(tar(out / "x.tar", {"train.tar": inner, "val.tar": inner}))


def folders_in_inner_tars(out: Path) -> str:
    inner = tar(out / "inner", {"a/x.jpg": picture(), "b/x.jpg": picture("b")}).read_bytes()
    return str(tar(out / "x.tar", {"n1.tar": inner, "n2.tar": inner}))


def class_tars_with_one_folder_name(out: Path) -> str:
    for name in ("cat", "dog"):
        tar(out / f"{name}.tar", {f"images/{name}.jpg": picture()})
    return str(out)


def tars_beside_previews(out: Path) -> str:
    folder(out / "previews", "a")
    tar(out / "0000.tar", samples([b"0", b"1"]))
    return str(out)


def tars_beside_images(out: Path) -> str:
    tar(out / "0000.tar", samples([b"0", b"1"]))
    (out / "x.png").write_bytes(picture("a", "PNG"))
    return str(out)


def splits_below_classes(out: Path) -> str:
    for name in "ab":
        folder(out / name, ["train", "val"])
    return str(out)


def flat_train_and_val(out: Path) -> str:
    return str(folder(out / "x", ["train", "val"]))


def two_names_for_val(out: Path) -> str:
    for name in ("train", "val", "validation"):
        folder(out / name)
    return str(out)


def files_of_splits_and_others(out: Path) -> str:
    parquet(out / "train-0.parquet", pa.array([0, 1]))
    parquet(out / "extra.parquet", pa.array([0, 1]))
    return str(out)


def a_pattern_over_splits(out: Path) -> str:
    for split in ("train", "validation"):
        parquet(out / f"{split}-00000-of-00001.parquet", pa.array([0, 1]))
    return str(out / "*.parquet")


def labels_of_two_kinds(out: Path) -> str:
    parquet(out / "0.parquet", pa.array([0, 1]))
    parquet(out / "1.parquet", pa.array(["a", "b"]))
    return str(out / "*.parquet")


def class_names_in_two_orders(out: Path) -> str:
    parquet(out / "0.parquet", pa.array([0, 1]), ["a", "b"])
    parquet(out / "1.parquet", pa.array([0, 1]), ["b", "a"])
    return str(out / "*.parquet")


def partitions(out: Path) -> str:
    parquet(out / "label=a/part-0.parquet", pa.array([0]))
    return str(out)


def parquet_one_folder_down(out: Path) -> str:
    parquet(out / "data/train-0.parquet", pa.array([0, 1]))
    return str(out)


def compressed_tars(out: Path) -> str:
    out.mkdir(exist_ok=True)
    (out / "x.tar.gz").write_bytes(b"\x1f\x8b\x08 rubbish")
    return str(out)


def a_compressed_tar(out: Path) -> str:
    return f"{compressed_tars(out)}/x.tar.gz"


def a_class_tar_that_is_compressed(out: Path) -> str:
    tar(out / "cat.tar", {"1.jpg": picture()})
    (out / "dog.tar.gz").write_bytes(b"\x1f\x8b\x08 rubbish")
    return str(out)


def a_class_tar_that_is_gone(out: Path) -> str:
    tar(out / "cat.tar", {"1.jpg": picture()})
    (out / "dog.tar").symlink_to("nowhere.tar")
    return str(out)


def a_file_of_no_kind(out: Path) -> str:
    out.mkdir(exist_ok=True)
    (out / "hosts").write_text("127.0.0.1")
    return str(out / "hosts")


def keys_twice_in_a_row(out: Path) -> str:
    return str(tar(out / "x.tar", [("a.jpg", picture()), ("a.jpg", picture("b")), ("a.cls", b"0")]))


def the_same_class_tar_twice(out: Path) -> str:
    inner = tar(out / "inner", {"x.jpg": picture()}).read_bytes()
    return str(tar(out / "x.tar", {"p/n1.tar": inner, "q/n1.tar": inner}))


REFUSED = {
    image_text: "00000.tar holds images with .json beside them, samples without .cls",
    images_only_shards: "called like shards rather than classes; list their names in source.classes",
    labels_from_the_second_tar_on: "0.tar holds images without folders, 1.tar holds WebDataset samples; all must be",
    dotted_keys: "photo.v1.cls has a dot within its key",
    a_tar_among_images: "class tars or an image folder?",
    shards_in_a_tar: "n1.tar: holds samples or tars of its own",
    splits_as_inner_tars: "the tars train, val are called after splits",
    folders_in_inner_tars: "n1.tar: holds several folders of images",
    class_tars_with_one_folder_name: "cat.tar holds the folder images: is the tar's name or the folder's the class?",
    tars_beside_previews: "beside the folder previews with images; name what is meant",
    tars_beside_images: "beside images such as x.png",
    splits_below_classes: "a/train and a/val; move them to <split>/<class>",
    flat_train_and_val: "its images have no class folders",
    two_names_for_val: "of which val and validation could be val; name one",
    files_of_splits_and_others: "files of the splits train and others, such as extra.parquet; name those of one split",
    a_pattern_over_splits: "names files of several splits, such as train-00000-of-00001.parquet and validation-00000",
    labels_of_two_kinds: "1.parquet has labels of another kind or other class names than 0.parquet",
    class_names_in_two_orders: "1.parquet has labels of another kind or other class names than 0.parquet",
    partitions: "is partitioned Parquet (label=a/…)",
    parquet_one_folder_down: "folder data holds no images, but 1 files of tar or Parquet; name them as the source",
    compressed_tars: "no tar that can be read by offset, but x.tar.gz (1 such); unpack or decompress them",
    a_compressed_tar: "is compressed (gzip) and cannot be read by offset; decompress it first",
    a_class_tar_that_is_compressed: "holds dog.tar.gz beside cat.tar and is packed; unpack it",
    a_class_tar_that_is_gone: "dog.tar is a link to nothing",
    a_file_of_no_kind: "is a file, and neither a tar nor Parquet by its name",
    keys_twice_in_a_row: "holds a.jpg twice; remove one",
    the_same_class_tar_twice: "holds two tars called n1",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path, refused, make):
    split = "val" if make is two_names_for_val else "train"
    assert REFUSED[make] in refused(listed, make(tmp_path), split)


def test_a_given_list_decides_between_a_tars_name_and_a_folders(tmp_path):
    source = class_tars_with_one_folder_name(tmp_path / "x")
    assert names(listed(source, classes=("dog", "cat"))) == ["cat/images/cat.jpg", "dog/images/dog.jpg"]
    assert listed(source, classes=("images",)).images["class"].to_pylist() == [0, 0]
    shards = images_only_shards(tmp_path / "y")
    assert len(names(listed(shards, classes=tuple(f"train-{n:06d}" for n in range(3))))) == 9


def test_class_tars_may_have_their_own_folder_inside_and_be_parts_of_one_folder(tmp_path):
    for name in ("cat", "dog"):
        tar(tmp_path / f"own/{name}.tar", {f"{name}/1.jpg": picture()})
    assert names(listed(tmp_path / "own")) == ["cat/1.jpg", "dog/1.jpg"]
    tar(tmp_path / "parts/0000.tar", {"cat/1.jpg": picture()})
    tar(tmp_path / "parts/0001.tar", {"dog/1.jpg": picture()})
    assert listed(tmp_path / "parts").classes == ("cat", "dog")


@pytest.mark.parametrize("before", [1, 1200])
def test_what_comes_first_in_a_tar_does_not_decide(tmp_path, before):
    first = {f"notes/{n:05d}.txt": b"x" for n in range(before)} | {"README.md": b"about"}
    members = {
        f"{split}/{kind}/{n}.jpg": picture(kind) for split in ("train", "val") for kind in "ab" for n in range(2)
    }
    source = tar(tmp_path / "x.tar", first | members)
    listing = listed(source)
    assert (listing.classes, names(listing)) == (("a", "b"), ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"])
    assert listing.other_files == before + 1 and listing.beside == ("val",)
    wds = tar(tmp_path / "y.tar", first | samples([b"1", b"0"]))
    assert listed(wds).images["class"].to_pylist() == [1, 0]


def test_an_empty_tar_or_one_of_notes_among_samples_is_left_out(tmp_path):
    tar(tmp_path / "0.tar", {"notes.txt": b"x"})
    tar(tmp_path / "1.tar", samples([b"1", b"0"]))
    listing = listed(tmp_path / "{0..1}.tar")
    assert listing.what == "2 tars of WebDataset samples, classes from .cls" and listing.other_files == 1


def test_of_two_images_in_a_sample_the_plain_suffix_counts_and_two_plain_ones_are_named(tmp_path):
    members = {"1.depth.png": picture("c", "PNG"), "1.jpg": picture(), "1.cls": b"0"}
    members |= {"2.jpg": picture(), "2.png": picture("b", "PNG"), "2.cls": b"0", "3.in.jpg": picture(), "3.cls": b"0"}
    listing = listed(tar(tmp_path / "x.tar", members))
    assert names(listing) == ["x.tar/1.jpg", "x.tar/3.in.jpg"]
    assert listing.refused == ({"name": "x.tar/2", "reason": "has several images (jpg, png)"},)
    assert listing.left_out == ({"reason": "another image of a sample", "count": 1, "first": "1.depth.png"},)


# ---- splits


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


def test_spelling_of_suffixes_does_not_matter_and_a_folder_called_parquet_is_one(tmp_path):
    tar(tmp_path / "X.TAR", samples([b"0", b"1"]))
    assert len(names(listed(tmp_path / "X.TAR"))) == 2
    parquet(tmp_path / "spark.parquet/part-00000-c000.snappy.parquet", pa.array(["a", "b"]))
    (tmp_path / "spark.parquet/_SUCCESS").write_bytes(b"")
    listing = listed(tmp_path / "spark.parquet")
    assert listing.classes == ("a", "b") and listing.beside == ("_SUCCESS",)


def test_percent_encoded_uris_name_the_files_they_encode(tmp_path):
    tar(tmp_path / "my photos/0 1.tar", samples([b"0", b"1"]))
    uri = f"file://{tmp_path}/my%20photos"
    for value in (uri, f"{uri}/0%201.tar", f"{uri}/*%201.tar"):
        assert len(names(listed(value))) == 2
