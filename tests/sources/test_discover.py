"""Every form a source comes in gives the same images with the same classes, and nothing is lost unsaid."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torchvision.datasets.imagenet import ARCHIVE_META

from schemas.config import SourceConfig as Settings
from stages.sources import class_labels as labels_module
from stages.sources.class_labels import MD5
from stages.sources.discover import list_source, list_sources
from stages.sources.reader import Reader
from tests.support.sources import (
    class_tars,
    files,
    folder_of_class_tars,
    kaggle,
    parquet,
    path_into_tar,
    sample_tars,
    tar_of_class_tars,
    tar_of_folder,
    tar_of_splits,
    write_tar,
)
from tests.support.world import CLASSES, ROOT

DATA = ROOT.parent / "shared/data"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the photographs of ../shared/data")

FORMS = [
    lambda root, out: str(root), tar_of_folder, tar_of_splits, path_into_tar, tar_of_class_tars, folder_of_class_tars,
    kaggle, sample_tars, parquet,
]  # fmt: skip
NAMES = ["folder", *(form.__name__ for form in FORMS[1:])]


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_every_form_gives_every_image_with_its_class(images, tmp_path, form):
    root = images / "train"
    listing = list_source(form(root, tmp_path), "train", None)
    assert listing.classes == CLASSES
    read = list(Reader(listing.source).read(listing.images))
    assert not any(found.fault for found in read)
    expected = sorted((CLASSES.index(name.split("/")[0]), data) for name, data in files(root).items())
    assert sorted((found.class_index, found.data) for found in read) == expected


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_the_order_of_a_given_list_is_the_order_of_the_classes(images, tmp_path, form):
    classes = ("red", "purple", "grey", "green", "blue")
    listing = list_source(form(images / "train", tmp_path), "train", classes)
    assert listing.classes == classes
    assert set(listing.images["class"].to_pylist()) == {0, 2, 3, 4}


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_a_class_that_the_list_does_not_name_is_refused(images, tmp_path, refused, form):
    source = form(images / "train", tmp_path)
    if form is parquet:  # its numbers count where the list has other names
        line = refused(list_source, source, "train", ("one", "two", "three"))
        assert "class 3 is not among the 3" in line
    else:
        line = refused(list_source, source, "train", ("blue", "green", "red"))
        assert f"source.train = {source}" in line and "class grey is not among the 3 of source.classes" in line


def test_numbered_classes_are_indices_and_the_list_names_them(images, tmp_path, refused):
    image = (images / "train/red/000.jpg").read_bytes()
    tar = write_tar(tmp_path / "a.tar", {"x.jpg": image, "x.cls": b"2", "y.jpg": image, "y.cls": b"0\n"})
    assert list_source(str(tar), "train", None).classes == ("0", "1", "2")
    assert list_source(str(tar), "train", ("a", "b", "c", "d")).images["class"].to_pylist() == [2, 0]
    assert "class 2 is not among the 2" in refused(list_source, str(tar), "train", ("a", "b"))


def test_nothing_in_a_tar_that_leads_out_of_it_is_read(images, tmp_path):
    image = (images / "train/red/000.jpg").read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (
            ("red/a.jpg", tarfile.REGTYPE), ("red/link.jpg", tarfile.SYMTYPE), ("red/hard.jpg", tarfile.LNKTYPE),
            ("red/../../up.jpg", tarfile.REGTYPE), ("/red/root.jpg", tarfile.REGTYPE), ("red/notes", tarfile.SYMTYPE),
            ("red/\udcff.jpg", tarfile.REGTYPE), ("red/pipe.jpg", tarfile.FIFOTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            info.size = len(image) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(image))
    listing = list_source(str(tmp_path / "x.tar"), "train", None)
    assert listing.images["name"].to_pylist() == ["red/a.jpg"]
    assert listing.other_files == 1
    assert {one["name"]: one["reason"] for one in listing.refused} == {
        "red/link.jpg": "is a link", "red/hard.jpg": "is a link", "red/pipe.jpg": "is not a plain file",
        "red/../../up.jpg": "has a path that leaves the archive", "/red/root.jpg": "has a path that leaves the archive",
        "red/?.jpg": "has a name that is not UTF-8",
    }  # fmt: skip


@pytest.mark.parametrize("names", [["red/a.jpg"] * 2, ["a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls"]])
def test_two_images_of_one_name_in_a_tar_are_refused(images, tmp_path, refused, names):
    image = (images / "train/red/000.jpg").read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            data = b"0" if name.endswith("cls") else image
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert "a.jpg twice; remove one" in refused(list_source, str(tmp_path / "x.tar"), "train", None)


def test_one_name_in_two_classes_is_two_images(images, tmp_path):
    image = (images / "train/red/000.jpg").read_bytes()
    tar = write_tar(tmp_path / "x.tar", {"red/a.jpg": image, "blue/a.jpg": image})
    assert list_source(str(tar), "train", None).images["class"].to_pylist() == [0, 1]


def test_other_image_bytes_in_parquet_are_noticed(images, tmp_path):
    first = list_source(parquet(images / "train", tmp_path / "a"), "train", None)
    again = list_source(parquet(images / "train", tmp_path / "b"), "train", None)
    table = pq.read_table(tmp_path / "b/data/train-00000.parquet").to_pylist()
    table[3]["image"]["bytes"] += b"x"
    described = pq.read_schema(tmp_path / "b/data/train-00000.parquet")
    pq.write_table(
        pa.Table.from_pylist(table, schema=described), tmp_path / "b/data/train-00000.parquet", row_group_size=7
    )
    assert first.fingerprint() == again.fingerprint()
    assert list_source(str(tmp_path / "b/data/train-*.parquet"), "train", None).fingerprint() != first.fingerprint()


def test_a_sample_without_its_class_or_its_image_is_named(images, tmp_path):
    image = (images / "train/red/000.jpg").read_bytes()
    tar = write_tar(tmp_path / "a.tar", {"x.jpg": image, "y.cls": b"0", "z.jpg": image, "z.cls": b"0"})
    listing = list_source(str(tar), "train", None)
    assert listing.images["name"].to_pylist() == ["a.tar/z.jpg"]
    assert {one["name"]: one["reason"] for one in listing.refused} == {
        "a.tar/x": "has no .cls",
        "a.tar/y": "has no image",
    }


def test_very_long_and_unicode_names_survive(images, tmp_path):
    image = (images / "train/red/000.jpg").read_bytes()
    names = [f"été/{'x' * 240}.jpg", f"été/{'深' * 80}/{'い' * 80}.jpg"]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(image)
                tar.addfile(info, io.BytesIO(image))
        listing = list_source(str(tmp_path / "x.tar"), "train", None)
        assert listing.images["name"].to_pylist() == sorted(names)
        assert [found.data for found in Reader(listing.source).read(listing.images)] == [image] * 2


DAMAGED = {
    "cut in an image": lambda data: data[:5000],
    "cut at a header": lambda data: data[: data.index(b"green.tar")],
    "cut in a header": lambda data: data[: data.index(b"green.tar") + 100],
    "without an end": lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512),
    "overwritten": lambda data: data[: data.index(b"green.tar")] + b"x" * 512 + data[data.index(b"green.tar") + 512 :],
    "empty": lambda data: b"",
    "something else": lambda data: b"text " * 1000,
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_tar_that_is_not_whole_is_refused(images, tmp_path, refused, how):
    path = Path(tar_of_class_tars(images / "train", tmp_path))
    path.write_bytes(DAMAGED[how](path.read_bytes()))
    assert f"{path}" in (line := refused(list_source, str(path), "train", None)) and "not a whole tar (" in line


def test_an_inner_tar_that_reaches_into_its_neighbour_is_refused(images, tmp_path, refused):
    parts = class_tars(images / "train", tmp_path / "parts")
    parts["green.tar"] = parts["green.tar"][:2048]
    path = write_tar(tmp_path / "x.tar", parts)
    assert f"{path}, green.tar: not a whole tar (" in refused(list_source, str(path), "train", None)


def test_a_compressed_tar_is_refused_with_what_to_do(images, tmp_path, refused):
    path = Path(tar_of_folder(images / "train", tmp_path))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert "is compressed (gzip) and cannot be read by offset; decompress it first" in refused(
        list_source, str(path), "train", None
    )


NO_SOURCE = {
    "nowhere": "no such folder", "nowhere.tar": "no such file", "nowhere.parquet": "no such file",
    "wds-{0000..0002}.tar": "wds-0002.tar is missing", "none-*.tar": "none-*.tar is missing", "": "is not set",
    "flat": "its images have no class folders; name their classes in source.val_labels", "texts.tar": "no images",
    "mixed": "names files of several kinds (parquet, tar)", "splits.tar/dev": "holds no images",
    "flat.tar": "its images have no classes; name them with source.val_labels",
}  # fmt: skip


@pytest.mark.parametrize("value", NO_SOURCE)
def test_what_is_no_source_is_refused_in_a_line_that_names_the_key(images, tmp_path, refused, value):
    sample_tars(images / "train", tmp_path)
    tar_of_splits(images / "train", tmp_path)
    image = (images / "train/red/000.jpg").read_bytes()
    write_tar(tmp_path / "flat.tar", {"a.jpg": image})
    write_tar(tmp_path / "texts.tar", {"a.txt": b"x"})
    for folder, name in (("flat", "a.jpg"), ("mixed", "a.tar"), ("mixed", "a.parquet")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(image)
    line = refused(list_source, f"{tmp_path}/{value}" if value else "", "train", None)
    assert line.startswith("source.train") and NO_SOURCE[value] in line


@pytest.mark.parametrize("columns", [{"image": [b"x"], "y": [1]}, {"image": ["x"], "label": [1]}, {"pixels": [b"x"]}])
def test_parquet_without_the_columns_is_refused_naming_what_it_has(tmp_path, refused, columns):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    line = refused(list_source, str(tmp_path / "a.parquet"), "train", None)
    assert line.endswith(f"has {', '.join(columns)}")


def test_a_cut_parquet_file_is_refused(images, tmp_path, refused):
    parquet(images / "train", tmp_path)
    file = tmp_path / "data/train-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    line = refused(list_source, str(tmp_path / "data"), "train", None)
    assert line.startswith(f"{file}: not a whole Parquet file")


def test_the_published_sums_are_those_that_torchvision_has():
    assert dict(ARCHIVE_META.values()) == MD5


def test_md5_sums_are_compared_on_request_only(images, tmp_path, refused, monkeypatch):
    train = tar_of_class_tars(images / "train", tmp_path)
    assert list_sources(Settings(train=train))["train"].classes == CLASSES
    asked = Settings(train=train, check_md5=True)
    assert "its md5 is " in (line := refused(list_sources, asked)) and MD5["ILSVRC2012_img_train.tar"] in line
    sum_ = hashlib.md5(Path(train).read_bytes()).hexdigest()
    monkeypatch.setitem(labels_module.MD5, "ILSVRC2012_img_train.tar", sum_)
    assert list_sources(asked)["train"].classes == CLASSES
    other = Settings(train=tar_of_folder(images / "train", tmp_path), check_md5=True)
    assert "has no published md5 sum" in refused(list_sources, other)


@real_data
def test_cifar_is_read_from_its_tar():
    listings = list_sources(Settings(train=str(DATA / "cifar10.tar"), val=str(DATA / "cifar10.tar/test")))
    assert {split: len(one.images) for split, one in listings.items()} == {"train": 50_000, "val": 10_000}
    assert listings["train"].classes[0] == "airplane"


@real_data
def test_the_official_archives_form_is_read_with_imagenets_classes():
    listing = list_sources(Settings(train=str(DATA / "imagenet_sample_train.tar"), classes="imagenet-1k"))["train"]
    assert len(listing.images) == 500 and len(listing.classes) == 1000
    assert listing.images["class"].to_pylist()[:3] == [0, 2, 4]
    found = next(Reader(listing.source).read(listing.images[:1]))
    assert found.data[:2] == b"\xff\xd8" and found.data[-2:] == b"\xff\xd9"
