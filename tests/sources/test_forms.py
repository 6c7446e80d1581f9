"""What a source is, all of it decides: mixtures and double readings are refused."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.hostile import folder, listed, names, parquet, picture, samples, tar


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
