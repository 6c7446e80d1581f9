"""Validation images that lie flat get their classes from the devkit or from Kaggle's file, and never wrong ones."""

import gzip
import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from schemas.config import SourceConfig as Settings
from stages.sources.class_labels import read_labels
from stages.sources.discover import list_sources
from stages.sources.matlab import read_structs
from stages.sources.reader import Reader
from tests.support.sources import files, kaggle, parquet, sample_tars, tar_of_folder, write_tar
from tests.support.world import CLASSES


def flat(images: Path) -> tuple[dict[str, bytes], list[str]]:
    """The validation images as the official archive has them, shuffled over the classes, and their classes."""
    by_number = sorted(files(images / "val").items(), key=lambda item: item[0][::-1])
    named = {f"ILSVRC2012_val_{number:08d}.JPEG": data for number, (_, data) in enumerate(by_number, 1)}
    return named, [name.split("/")[0] for name, _ in by_number]


def devkit(out: Path, classes: list[str], *, compressed: bool = True) -> str:
    """An archive as the official one: ids in another order than names, and synsets that are no classes."""
    ids = {name: number for number, name in enumerate(reversed(CLASSES), 1)}
    synsets = [(number, name, f"{name}, words", 0.5, [number] * 3) for name, number in ids.items()]
    synsets.append((9, "n00000000", "an inner node", 1.5, [1, 2, 3]))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("children", "O")]
    table = np.array([tuple(one) for one in synsets], dtype=fields).reshape(-1, 1)
    meta, other = io.BytesIO(), {"answer": 42.0}
    scipy.io.savemat(meta, other | {"synsets": table}, do_compression=compressed)
    truth = "".join(f"{ids[name]}\n" for name in classes)
    path = write_tar(
        out / "devkit.tar",
        {
            "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        },
    )
    (out / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    return str(out / "ILSVRC2012_devkit_t12.tar.gz")


def solution(out: Path, classes: list[str]) -> str:
    rows = [f"ILSVRC2012_val_{number:08d},{name} 1 2 3 4 {name} 5 6 7 8" for number, name in enumerate(classes, 1)]
    (out / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))
    return str(out / "LOC_val_solution.csv")


def check_val(images: Path, settings: Settings) -> None:
    listing = list_sources(settings)["val"]
    read = [(CLASSES[found.class_index], found.data) for found in Reader(listing.source).read(listing.images)]
    expected = [(name.split("/")[0], data) for name, data in files(images / "val").items()]
    assert sorted(read) == sorted(expected)


@pytest.mark.parametrize("labels", [devkit, solution])
@pytest.mark.parametrize("packed", [True, False], ids=["tar", "folder"])
def test_flat_validation_images_get_their_classes(images, tmp_path, labels, packed):
    named, classes = flat(images)
    if packed:
        val = write_tar(tmp_path / "ILSVRC2012_img_val.tar", named)
    else:
        val = tmp_path / "val"
        val.mkdir()
        for name, data in named.items():
            (val / name).write_bytes(data)
    settings = dict(train=str(images / "train"), val=str(val), val_labels=labels(tmp_path, classes))
    check_val(images, Settings(**settings))


def test_kaggles_folder_brings_its_labels(images, tmp_path):
    root = Path(kaggle(images / "train", tmp_path))
    named, classes = flat(images)
    (root / "ILSVRC/Data/CLS-LOC/val").mkdir()
    for name, data in named.items():
        (root / "ILSVRC/Data/CLS-LOC/val" / name).write_bytes(data)
    solution(root, classes)
    check_val(images, Settings(train=str(root), val=str(root)))


@pytest.mark.parametrize("compressed", [True, False])
def test_matlabs_structs_are_read_as_scipy_reads_them(tmp_path, compressed):
    with tarfile.open(devkit(tmp_path, ["red"], compressed=compressed)) as tar:
        data = tar.extractfile("ILSVRC2012_devkit_t12/data/meta.mat").read()
    ours = read_structs(data, "synsets")
    theirs = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
    assert [(one["ILSVRC2012_ID"], one["WNID"], one["words"]) for one in ours] == [tuple(one)[:3] for one in theirs]
    assert [one["children"] for one in ours] == [one["children"].tolist() for one in theirs]
    for cut in (0, 100, 130, 200, len(data) - 40):
        with pytest.raises(ValueError, match=r"MAT-file|no variable"):
            read_structs(data[:cut], "synsets")


def test_labels_that_do_not_fit_the_images_are_refused(images, tmp_path, refused):
    named, classes = flat(images)
    write_tar(tmp_path / "val.tar", named)
    settings = dict(train=str(images / "train"), val=str(tmp_path / "val.tar"))
    few = Settings(**settings, val_labels=solution(tmp_path, classes[:-1]))
    assert "names no class for image ILSVRC2012_val_00000020.JPEG" in refused(list_sources, few)
    many = Settings(**settings, val_labels=solution(tmp_path, [*classes, "red"]))
    assert "lacks 1 images, of which ILSVRC2012_val_00000021 is the first" in refused(list_sources, many)
    assert "its images have no classes; name them with source.val_labels" in refused(list_sources, Settings(**settings))
    (tmp_path / "labels.csv").write_text("a,b\n1,2\n")
    other = Settings(**settings, val_labels=str(tmp_path / "labels.csv"))
    assert "is neither ILSVRC2012_devkit_t12.tar.gz nor LOC_val_solution.csv" in refused(list_sources, other)
    missing = Settings(**settings, val_labels=str(tmp_path / "nowhere.csv"))
    assert "nowhere.csv: cannot be read (" in refused(list_sources, missing)


def test_labels_for_images_that_have_classes_are_refused(images, tmp_path, refused):
    given = solution(tmp_path, flat(images)[1])
    for form in (lambda root, out: str(root), tar_of_folder, sample_tars, parquet):
        settings = Settings(train=str(images / "train"), val=form(images / "val", tmp_path / "v"), val_labels=given)
        assert "unset source.val_labels" in refused(list_sources, settings)
    alone = Settings(train=str(images / "train"), val_labels=given)
    assert "source.val is not; set both or neither" in refused(list_sources, alone)


def test_a_devkit_that_unpacks_without_end_is_refused(tmp_path, refused):
    variable = zlib.compress(bytes(200 << 20))
    data = bytes(126) + b"IM" + struct.pack("<II", 15, len(variable)) + variable
    with pytest.raises(ValueError, match="far longer than the devkit's"):
        read_structs(data, "synsets")
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(bytes(200 << 20)))
    assert "is too long for the devkit" in refused(read_labels, str(tmp_path / "ILSVRC2012_devkit_t12.tar.gz"))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("x,\n", "x has no class"), ("x,1.5\n", "is a number"), ("x,a\nx,b\n", "x has two classes, a and b"),
        (f"x,{'y' * 200_000}\n", "field larger"), ("", "no rows"),
    ],
)  # fmt: skip
def test_a_solution_that_does_not_say_one_class_an_image_is_refused(tmp_path, refused, rows, says):
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    line = refused(read_labels, str(tmp_path / "LOC_val_solution.csv"))
    assert line.startswith("source.val_labels = ") and says in line


def test_a_solution_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "LOC_val_solution.csv").write_bytes(b"\xef\xbb\xbfImageId,PredictionString\nx,n01 1 2 3 4\n")
    assert read_labels(str(tmp_path / "LOC_val_solution.csv")).take("x.jpg") == "n01"
