"""Find out what a source is, and list it."""

import fnmatch
import re
from typing import NamedTuple

from schemas.config import Source as Settings
from schemas.errors import PipelineError
from stages.sources.folder import SPLITS, list_folder, split_folder
from stages.sources.labels import Labels, check_md5, read_classes, read_labels
from stages.sources.listing import Classes, Listing
from stages.sources.parquet import list_parquet
from stages.sources.tars import list_tars
from stages.store import Store, split_uri, uri_options

_KAGGLE = "ILSVRC/Data/CLS-LOC"
_KAGGLE_LABELS = "LOC_val_solution.csv"
_TAR = re.compile(r"(.+?\.tar)(?:/(.*))?")


class Place(NamedTuple):
    """A source's folder, the archives in it, and the folder inside them."""

    root: Store
    files: list[str]
    below: str


def list_sources(settings: Settings) -> dict[str, Listing]:
    """List the splits of a run file's `[source]`; the classes of train are those of val too.

    Raises:
        PipelineError: naming the key, if a source is missing or no source, or the two do not go together.
    """
    if settings.check_md5:
        for key in ("train", "val", "val_labels"):
            if value := getattr(settings, key):
                check_md5(value, f"source.{key}")
    if settings.val_labels and not settings.val:
        raise PipelineError("source.val_labels: is set, but source.val is not; set both or neither")
    listings = {"train": list_source(settings.train, "train", read_classes(settings.classes))}
    if settings.val:
        labels = read_labels(settings.val_labels) if settings.val_labels else None
        listings["val"] = list_source(settings.val, "val", listings["train"].classes, labels)
        if not settings.classes:
            _check_same_classes(listings["train"], listings["val"])
    return listings


def _check_same_classes(train: Listing, val: Listing) -> None:
    seen = set(val.images["class"].unique().to_pylist())
    if missing := [name for number, name in enumerate(train.classes) if number not in seen]:
        raise PipelineError(
            f"source.val: has no image of class {missing[0]} ({len(missing)} such), which source.train has; "
            "add some, or name all classes with source.classes"
        )


def list_source(value: str, split: str, classes: Classes, labels: Labels | None = None) -> Listing:
    """List one source.

    Args:
        value: a path or URI; braces and `*` name several files; a path may go on inside a tar.
        split: train or val.
        classes: class names by index; None = those of the source.
        labels: classes of images that lie flat.

    Raises:
        PipelineError: naming the key, if there is no source, or not one whose images have classes.
    """
    where = f"source.{split} = {uri_options(value)[0]}"
    if not value:
        raise PipelineError(f"source.{split} is not set; give an image folder, <root>/<class>/*.jpg, a tar or Parquet")
    place = _find(value, where)
    if not place.files and (kaggle := place.root.at(_KAGGLE)).folders():
        if split == "val" and labels is None:
            labels = read_labels(place.root.at(_KAGGLE_LABELS).uri)
        return list_source(kaggle.at(split).uri, split, classes, labels)
    if not place.files:
        folders = set(place.root.folders())
        if folders and folders <= SPLITS:
            return list_source(place.root.at(split_folder(folders, split, where)).uri, split, classes, labels)
        return list_folder(place.root, classes, labels, where)
    if place.files[0].endswith(".tar"):
        return list_tars(place.root, place.files, place.below, split, classes, labels, where)
    if labels is not None:
        raise PipelineError(f"{where}: has classes of its own; unset source.val_labels")
    return list_parquet(place.root, place.files, classes, where)


def _find(value: str, where: str) -> Place:
    """Where a source lies; a folder that holds tars or Parquet and no folders stands for these."""
    path, options = uri_options(value)
    fixed, pattern = _fixed_part(path.rstrip("/"))
    if pattern:
        store = Store((fixed or ".") + options)
        return Place(store, _expand(store, pattern, where), "")
    if (match := _TAR.fullmatch(fixed)) and not Store(match[1] + options).is_folder():
        return Place(*_file(match[1] + options, where), match[2] or "")
    if fixed.endswith(".parquet"):
        return Place(*_file(fixed + options, where), "")
    whole = Store(fixed + options)
    if not whole.is_folder():
        raise PipelineError(f"{where}: no such folder; give an image folder, a tar, Parquet or {{0000..1023}}.tar")
    names = sorted(name for name in whole.files() if name.endswith((".tar", ".parquet")))
    return Place(whole, _alike(names, where) if names and not whole.folders() else [], "")


def _file(path: str, where: str) -> tuple[Store, list[str]]:
    store, name = split_uri(path)
    if not store.exists(name):
        raise PipelineError(f"{where}: no such file; give an image folder, a tar, Parquet or {{0000..1023}}.tar")
    return store, [name]


def _fixed_part(value: str) -> tuple[str, str]:
    """The folder above the first segment with braces or a star, and the rest."""
    at = re.search(r"[{*]", value)
    if at is None:
        return value or "/", ""
    cut = value.rfind("/", 0, at.start())
    return (value[:cut] or "/", value[cut + 1 :]) if cut >= 0 else ("", value)


def _expand(store: Store, pattern: str, where: str) -> list[str]:
    """The files that a pattern names; those that braces name must all be there."""
    names: list[str] = []
    for one in _braces(pattern, where):
        folder, slash, last = one.rpartition("/")
        there = store.files(folder)
        found = sorted(f"{folder}{slash}{name}" for name in fnmatch.filter(there, last))
        if not found:
            raise PipelineError(f"{where}: {one} is missing in {store}")
        names += found
    return _alike(names, where)


def _braces(pattern: str, where: str) -> list[str]:
    if not set("{}") & set(pattern):
        return [pattern]
    from webdataset.shardlists import expand_urls  # here: it loads torch, which other sources have no use for

    try:
        return list(expand_urls(pattern))
    except ValueError as error:
        raise PipelineError(f"{where}: {error}; braces come in pairs, such as {{0000..1023}}.tar") from None


def _alike(names: list[str], where: str) -> list[str]:
    kinds = {name.rpartition(".")[2] for name in names}
    if len(kinds) != 1 or not kinds <= {"tar", "parquet"}:
        raise PipelineError(f"{where}: names files of several kinds ({', '.join(sorted(kinds))}); all .tar or .parquet")
    return names
