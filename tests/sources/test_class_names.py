"""A label is a class's index or its name; whatever else it looks like is refused with its sample and value."""

import pickle
import struct

import pyarrow as pa
import pytest

from schemas.config import SourceConfig as Settings
from stages.sources.class_labels import Labels, read_classes
from stages.sources.discover import list_source, list_sources
from tests.support.hostile import folder, parquet, samples, tar

ODD = {
    b"": "is empty", b" \n": "is empty", b"0.0": "is a number or several", b"-1": "is a number or several",
    b"1e3": "is a number or several", b"0x1f": "is a number or several", b"nan": "is a number or several",
    b"1 2": "is a number or several", b"1_000": "is a number or several", b"+3": "is a number or several",
    "٣".encode(): "is a number or several",
    b"007": "could be the index 7 or a name", b"\xef\xbb\xbf3": "byte order mark",
    "3".encode("utf-16"): "byte order mark", "cat".encode("utf-16-le"): "holds control characters",
    struct.pack("<q", 300): "holds control characters", b"caf\xe9": "is not UTF-8", pickle.dumps(3): "is not UTF-8",
    b"3\n4": "holds control characters", b"cat\x1b[2J": "holds control characters", b"n" * 201: "longer than 200 bytes",
    b"b'3'": "as a program prints it", b"tensor(3)": "as a program prints it", b"[3]": "as a program prints it",
    b'{"label": 3}': "as a program prints it", b'"cat"': "as a program prints it", b"None": "as a program prints it",
}  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_a_text_that_is_no_label_is_refused_with_its_sample(tmp_path, refused, text):
    line = refused(list_source, str(tar(tmp_path / "x.tar", samples([b"1", b"0", text]))), "train", None)
    assert f"{tmp_path}/x.tar: 00002.cls says " in line and ODD[text] in line


def test_what_the_list_names_is_a_name_whatever_it_looks_like(tmp_path):
    source = str(tar(tmp_path / "x.tar", samples([b"007", b"-1", b"None", b"crane (bird)"])))
    listing = list_source(source, "train", ("-1", "007", "None", "crane (bird)", "x"))
    assert listing.images["class"].to_pylist() == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("texts", "classes", "says"),
    [
        ([b"0", b"cat"], None, "some classes are numbers and some are names, such as 0 and cat"),
        ([b"2", b"1"], ("0", "1", "10", "2"), "class 2 could be the name of class 3 or the index 2"),
        ([b"0", b"9"], ("a", "0", "b"), "class 0 could be the name of class 1 or the index 0"),
        ([b"2000000000", b"1"], None, "has 2000000001 classes, such as that of x.tar/00000.jpg; at most 65535"),
        ([b"9" * 150], None, "at most 65535"),
        ([b"cat", b"dgo"], ("cat", "dog"), "class dgo is not among the 2 of source.classes or of the train split"),
    ],
)
def test_labels_that_could_be_either_are_refused(tmp_path, refused, texts, classes, says):
    assert says in refused(list_source, str(tar(tmp_path / "x.tar", samples(texts))), "train", classes)


def test_numbers_that_a_list_has_in_their_own_places_are_taken(tmp_path):
    source = str(tar(tmp_path / "x.tar", samples([b"2", b"10"])))
    listing = list_source(source, "train", tuple(map(str, range(11))))
    assert listing.images["class"].to_pylist() == [2, 10]
    assert list_source(source, "train", ("10", "2")).images["class"].to_pylist() == [1, 0]  # no index could be meant
    listing = list_source(source, "train", None)
    assert len(listing.classes) == 11
    assert listing.warnings == ("9 of 11 class indices have no images, such as 0",)


# ---- Parquet


@pytest.mark.parametrize(
    ("labels", "names", "classes", "says"),
    [
        ([0, -1], "ab", None, "row 1: the label -1 is no class index, of which the files name 2"),
        ([0, -1], None, None, "row 1: the label -1 is no class index"),
        ([0, 2], "ab", None, "row 1: the label 2 is no class index, of which the files name 2"),
        ([0, 2**31], None, None, "has 2147483649 classes"),
        ([0, 1], ["a", "see"], ("a", "b"), "class see is not among the 2 of source.classes"),
        ([0, 1], ["Cat", "Dog"], ("dog", "cat"), "class Cat is not among the 2 of source.classes"),
        ([0, 1], ["x", "y"], ("a", "b", "c"), "class x is not among the 3 of source.classes"),
        (["a", ""], None, None, "row 1: the label '' is empty"),
        (["a", "1.5"], None, None, "row 1: the label '1.5' is a number"),
    ],
)
def test_labels_of_parquet_are_refused_with_their_row(tmp_path, refused, labels, names, classes, says):
    path = parquet(tmp_path / "x.parquet", pa.array(labels), names)
    assert says in refused(list_source, str(path), "train", classes)


def test_names_in_another_order_than_the_list_decide_and_other_names_are_said(tmp_path):
    path = str(parquet(tmp_path / "x.parquet", pa.array([0, 1]), ["b", "a"]))
    assert list_source(path, "train", ("a", "b")).images["class"].to_pylist() == [1, 0]
    other = list_source(path, "train", ("n01", "n02"))
    assert other.images["class"].to_pylist() == [0, 1]
    assert "so that b is n01, and a is n02" in other.warnings[0]
    long = str(parquet(tmp_path / "y.parquet", pa.array([0, 1]), ["great white, shark", "tiger_cat"]))
    assert list_source(long, "train", ("Great White", "tiger cat")).warnings == ()


TYPES = {
    "large string": pa.large_string(), "view": pa.string_view(), "dictionary": pa.dictionary(pa.int32(), pa.string()),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_text_that_writers_use_is_read(tmp_path, kind):
    labels = (
        pa.array(["b", "a", "b"]).cast(TYPES[kind])
        if kind != "dictionary"
        else pa.array(list("bab")).dictionary_encode()
    )
    listing = list_source(str(parquet(tmp_path / "x.parquet", labels)), "train", None)
    assert (listing.classes, listing.images["class"].to_pylist()) == (("a", "b"), [1, 0, 1])


@pytest.mark.parametrize("image", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_every_type_of_bytes_that_writers_use_is_read(tmp_path, image):
    from stages.sources.reader import Reader

    listing = list_source(str(parquet(tmp_path / "x.parquet", pa.array([0, 1]), image=image)), "train", None)
    assert all(found.data[:2] == b"\xff\xd8" for found in Reader(listing.source).read(listing.images))


# ---- folders, lists, flat images


def test_the_order_of_folders_called_by_numbers_is_warned_of_and_chosen_by_a_key(tmp_path):
    root = str(folder(tmp_path / "x", map(str, range(12)), each=1))
    listing = list_sources(Settings(train=root))["train"]
    assert listing.classes[:4] == ("0", "1", "10", "11")
    assert "class 2 is '10', and would be '2'" in listing.warnings[0]
    chosen = list_sources(Settings(train=root, classes="numeric", val=root))
    assert chosen["train"].classes == chosen["val"].classes == tuple(map(str, range(12)))
    assert not chosen["train"].warnings
    few = list_source(str(folder(tmp_path / "y", "012", each=1)), "train", None)
    assert not few.warnings


def test_numeric_order_of_names_that_are_none_is_refused(tmp_path, refused):
    line = refused(list_source, str(folder(tmp_path / "x", ["1", "b"])), "train", "numeric")
    assert 'class b is no number, as source.classes = "numeric" needs' in line


def test_a_list_of_names_may_begin_with_a_byte_order_mark_and_has_no_controls(tmp_path, refused):
    file = tmp_path / "names.txt"
    file.write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert read_classes(str(file)) == ("cat", "dog")
    file.write_bytes(b"cat\x1b[2J\ndog")
    assert "holds control characters" in refused(read_classes, str(file))
    file.write_text("\n".join(map(str, range(65_536))))
    assert "has 65536 names; at most 65535" in refused(read_classes, str(file))


@pytest.mark.parametrize("text", ["", "1.5", "tensor(3)"])
def test_labels_of_flat_images_are_looked_at_too(text):
    with pytest.raises(ValueError, match="the class of x, "):
        Labels({"x": text}, "source.val_labels = y")
