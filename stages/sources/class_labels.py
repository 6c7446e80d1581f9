"""What the classes of a source are called, and which class an image has where its place does not say.

The official validation images are in one folder. Their classes come from the devkit (`ILSVRC2012_devkit_t12.tar.gz`:
line n of the ground truth is the ILSVRC id of image n, and `meta.mat` maps it to a synset) or from Kaggle's
`LOC_val_solution.csv`.
"""

import csv
import gzip
import hashlib
import io
import os
import zlib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from stages.sources.class_names import MOST_CLASSES, NUMERIC, Classes, LabelCheck
from stages.sources.headers import members
from stages.sources.matlab import read_structs
from stages.sources.names import IMAGE_SUFFIXES, suffix_of
from stages.storage.store import split_uri

# Published with the data, https://image-net.org/challenges/LSVRC/2012/2012-downloads.php
MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
}
_LARGEST_DEVKIT = 64 << 20
"""Bytes, unpacked; the official one has 3 million."""


class Labels:
    """Classes of flat images by file name without suffix; notes which were looked up."""

    def __init__(self, classes: dict[str, str], context: str) -> None:
        self.context = context
        check = LabelCheck()
        for name, text in classes.items():
            try:
                check(text)
            except ValueError as error:
                raise ValueError(f"the class of {name}, {text!r}, {error}") from None
        self._classes, self._left = classes, set(classes)

    def take(self, name: str) -> str:
        """The class of an image.

        Raises:
            UserError: if it has none.
        """
        stem = os.path.splitext(os.path.basename(name))[0]
        if stem not in self._classes:
            raise UserError(f"{self.context}: names no class for image {name}; it does not belong to these images")
        if stem not in self._left:
            raise UserError(f"{self.context}: names the class of {stem} once, for {name} and another image; remove one")
        self._left.discard(stem)
        return self._classes[stem]

    def check_all_seen(self, context: str) -> None:
        """Raise UserError if labelled images were not there."""
        if self._left:
            lost = f"{len(self._left)} images, of which {min(self._left)} is the first"
            raise UserError(f"{context}: lacks {lost}, that {self.context} names; copy or download it again")


def read_labels(value: str) -> Labels:
    """Read `source.val_labels`: the devkit archive or Kaggle's solution.

    Raises:
        UserError: if it is neither.
    """
    context = f"source.val_labels = {value}"
    store, name = split_uri(value)
    try:
        data = store.read(name)
    except OSError as error:
        raise UserError(f"{context}: cannot be read ({error.strerror or error})") from None
    try:
        return Labels(_solution(data) if name.endswith(".csv") else _devkit(data), context)
    except (ValueError, KeyError, OSError, UserError, EOFError, zlib.error, csv.Error) as error:
        raise UserError(
            f"{context}: is neither ILSVRC2012_devkit_t12.tar.gz nor LOC_val_solution.csv ({error})"
        ) from None


def read_classes(value: str) -> Classes:
    """Class names by index from `source.classes`: "" = None, "numeric", "imagenet-1k", or a file with one name a line.

    Raises:
        UserError: if the file is missing, empty or names a class twice.
    """
    if not value:
        return None
    if value == NUMERIC:
        return NUMERIC
    if value == "imagenet-1k":
        return tuple(_timms_synsets().read_text(encoding="ascii").split())
    try:
        names = [line.strip() for line in Path(value).read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'source.classes = {value}: cannot be read ({error}); "" = sorted folder names') from None
    if not names:
        raise UserError(f"source.classes = {value}: is empty; one class name a line")
    if strange := next((name for name in names if not name.isprintable()), None):
        raise UserError(f"source.classes = {value}: {strange!r} holds control characters; one class name a line")
    if len(names) > MOST_CLASSES:
        raise UserError(f"source.classes = {value}: has {len(names)} names; at most {MOST_CLASSES} can be told apart")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"source.classes = {value}: names {twice} twice; every class once")
    return tuple(names)


def _timms_synsets() -> Path:
    """The list that timm brings, found without loading timm, which loads torch."""
    return Path(str(distribution("timm").locate_file("timm/data/_info/imagenet_synsets.txt")))


def check_md5(value: str, key: str) -> None:
    """Compare an official archive with its published md5 sum.

    Raises:
        UserError: if it differs, or the file is none of the official archives.
    """
    store, name = split_uri(value)
    if name not in MD5:
        raise UserError(f"{key} = {value}: has no published md5 sum as {', '.join(MD5)} have; unset check_md5")
    try:
        with store.stream(name) as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise UserError(f"{key} = {value}: cannot be read ({error.strerror or error})") from None
    if found != MD5[name]:
        raise UserError(f"{key} = {value}: its md5 is {found}, the published one {MD5[name]}; download it again")


def _solution(data: bytes) -> dict[str, str]:
    """Kaggle's: `ImageId,PredictionString`, and the first word of the second is the synset."""
    classes: dict[str, str] = {}
    rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    if missing := [one for one in ("ImageId", "PredictionString") if one not in (rows.fieldnames or ())]:
        raise ValueError(f"has no column {missing[0]}")
    for row in rows:
        name, words = row["ImageId"], (row["PredictionString"] or "").split()
        name = name.rpartition(".")[0] if suffix_of(name) in IMAGE_SUFFIXES else name
        if not words:
            raise ValueError(f"{name} has no class")
        if classes.setdefault(name, words[0]) != words[0]:
            raise ValueError(f"{name} has two classes, {classes[name]} and {words[0]}")
    if not classes:
        raise ValueError("no rows")
    return classes


def _devkit(data: bytes) -> dict[str, str]:
    files: dict[str, bytes] = {}
    unpacked = io.BytesIO(_unpacked(data))
    for member in members(unpacked, "the devkit"):
        name = member.name.rpartition("/")[2]
        if name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt") and not member.fault:
            files[name] = unpacked.getvalue()[member.offset : member.offset + member.size]
    synsets: dict[Any, Any] = {one["ILSVRC2012_ID"]: one["WNID"] for one in read_structs(files["meta.mat"], "synsets")}
    lines = files["ILSVRC2012_validation_ground_truth.txt"].split()
    return {f"ILSVRC2012_val_{number:08d}": synsets[int(line)] for number, line in enumerate(lines, 1)}


def _unpacked(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        found = file.read(_LARGEST_DEVKIT + 1)
    if len(found) > _LARGEST_DEVKIT:
        raise ValueError("is too long for the devkit")
    return found
