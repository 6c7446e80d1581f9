"""Find out what a source is, and list it."""

import fnmatch
import re
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import unquote

from schemas.config import SourceConfig as Settings
from schemas.errors import UserError
from stages.sources.class_labels import MD5, Labels, check_md5, read_classes, read_labels
from stages.sources.class_names import Classes
from stages.sources.headers import compression
from stages.sources.image_folder import DiskTree, entries, has_images_below, list_folder
from stages.sources.listing import Listing
from stages.sources.names import is_hidden, suffix_of, why_no_image
from stages.sources.parquet import list_parquet
from stages.sources.splits import (
    check_no_parallel_folders,
    check_one_split,
    choose_files,
    find_split,
    missing_files,
)
from stages.sources.tar import list_tars
from stages.storage.file_systems import uri_options
from stages.storage.store import Store, split_uri

_KAGGLE = "ILSVRC/Data/CLS-LOC"
_KAGGLE_LABELS = "LOC_val_solution.csv"
_TAR = re.compile(r"(.+?\.tar)(?:/(.*))?", re.IGNORECASE)
_PACKED = re.compile(r"\.(tar\.(gz|xz|bz2|zst|lz4)|tgz|txz|tbz2?|zip|7z|rar)$", re.IGNORECASE)
_KINDS = ("tar", "parquet")
_FORMS = "give an image folder, a tar, Parquet or {0000..1023}.tar"


class SourceLocation(NamedTuple):
    """A source's folder, the archives in it, the folder inside them, and what is beside them and left out."""

    root: Store
    files: list[str]
    below: str
    beside: tuple[str, ...] = ()
    warning: str = ""


def list_sources(settings: Settings) -> dict[str, Listing]:
    """List the splits of a run file's `[source]`; the classes of train are those of val too.

    Raises:
        UserError: naming the key, if a source is missing or no source, or the two do not go together.
    """
    if settings.check_md5:
        for key in ("train", "val", "val_labels"):
            if value := getattr(settings, key):
                check_md5(value, f"source.{key}")
    if settings.val_labels and not settings.val:
        raise UserError("source.val_labels: is set, but source.val is not; set both or neither")
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
        raise UserError(
            f"source.val: has no image of class {missing[0]} ({len(missing)} such), which source.train has; "
            "add some, or name all classes with source.classes"
        )


def list_source(value: str, split: str, classes: Classes, labels: Labels | None = None) -> Listing:
    """List one source.

    Args:
        value: a path or URI; braces and `*` name several files; a path may go on inside a tar.
        split: train or val.
        classes: class names by index; None = those of the source.
        labels: classes of images without folders.

    Raises:
        UserError: naming the key, if there is no source, or not one whose images have classes.
    """
    context = f"source.{split} = {uri_options(value)[0]}"
    if not value:
        raise UserError(f"source.{split} is not set; give an image folder, <root>/<class>/*.jpg, a tar or Parquet")
    place = _find(value, split, classes, context)
    if not place.files and (kaggle := place.root.child(_KAGGLE)).folders():
        if split == "val" and labels is None:
            labels = read_labels(place.root.child(_KAGGLE_LABELS).uri)
        return list_source(kaggle.child(split).uri, split, classes, labels)
    if not place.files:
        known, tree = classes if isinstance(classes, tuple) else (), DiskTree(place.root)
        inner = find_split(tree, split, known, context)
        if not inner.folder:
            check_no_parallel_folders(tree, "", known, context)
            return list_folder(place.root, classes, labels, context)
        listing = list_source(place.root.child(inner.folder).uri, split, classes, labels)
        flat = sorted(entry.name for entry in entries(place.root, "") if not entry.is_folder)
        beside = (*inner.beside, *(name for name in flat if not why_no_image(name)), *listing.beside)
        return replace(listing, what=f"in {inner.folder}/, {listing.what}", beside=beside)
    if suffix_of(place.files[0]) == "tar":
        listing = list_tars(place.root, place.files, place.below, split, classes, labels, context)
    elif labels is not None:
        raise UserError(f"{context}: has classes of its own; unset source.val_labels")
    else:
        listing = list_parquet(place.root, place.files, classes, context)
    warnings = (*listing.warnings, place.warning) if place.warning else listing.warnings
    return replace(listing, beside=(*listing.beside, *place.beside), warnings=warnings)


def _find(value: str, split: str, classes: Classes, context: str) -> SourceLocation:
    """Where a source is; a folder that holds tars or Parquet stands for these."""
    path, options = uri_options(value)
    fixed, pattern = _fixed_part(path.rstrip("/"))
    known = classes if isinstance(classes, tuple) else ()
    if pattern:
        store = Store((fixed or ".") + options)
        files = _expand(store, unquote(pattern) if "://" in value else pattern, context)
        check_one_split(files, known, context)
        return SourceLocation(store, files, "", warning=missing_files(files, context) if "*" in pattern else "")
    if (match := _TAR.fullmatch(fixed)) and not Store(match[1] + options).is_folder():
        return SourceLocation(*_file(match[1] + options, context), match[2] or "")
    whole = Store(fixed + options)
    if not whole.is_folder():
        return SourceLocation(*_file(fixed + options, context), "")
    names = sorted(name for name in whole.files() if suffix_of(name) in _KINDS)
    if not names:
        _refuse_packed(whole, context)
        return SourceLocation(whole, [], "")
    _alike(names, context)
    beside = _beside(whole, names, context)
    files = choose_files(names, split, known, context)
    if missing := missing_files(files, context):
        raise UserError(
            f"{context}: {missing}; copy or download them, or name the files that are meant with a pattern, such as "
            f"{context.partition(' = ')[2]}/*.{suffix_of(names[0])}"
        )
    return SourceLocation(whole, files, "", (*(name for name in names if name not in files), *beside))


def _beside(store: Store, names: list[str], context: str) -> list[str]:
    """What a folder holds beside its tars or Parquet files.

    Raises:
        UserError: if there are images among it, so that it cannot be told which of them the source is.
    """
    found = []
    for entry in sorted(entries(store, "")):
        if entry.name in names:
            continue
        if entry.fault and suffix_of(entry.name) in _KINDS and not is_hidden(entry.name):
            raise UserError(f"{context}: {entry.name} {entry.fault}; remove it or put the file there")
        packed = not entry.is_folder and not is_hidden(entry.name) and _PACKED.search(entry.name)
        if packed and entry.name not in MD5:  # the devkit is beside the official archives
            raise UserError(
                f"{context}: holds {entry.name} beside {names[0]} and is packed; unpack it, or name what is "
                f"meant, such as {context.partition(' = ')[2]}/*.{suffix_of(names[0])}"
            )
        is_images = not is_hidden(entry.name) and (
            has_images_below(store, entry.name) if entry.is_folder else not why_no_image(entry.name)
        )
        if is_images:
            kind = f"the folder {entry.name} with images" if entry.is_folder else f"images such as {entry.name}"
            base = context.partition(" = ")[2]
            raise UserError(
                f"{context}: holds {len(names)} files such as {names[0]} beside {kind}; name what is meant, such as "
                f"{base}/*.{suffix_of(names[0])}" + (f" or {base}/{entry.name}" if entry.is_folder else "")
            )
        found.append(entry.name)
    return found


def _refuse_packed(store: Store, context: str) -> None:
    """Raise UserError for a folder without images that holds archives nobody reads, or partitions of Parquet."""
    names = [entry.name for entry in sorted(entries(store, "")) if not is_hidden(entry.name)]
    base = context.partition(" = ")[2]
    if partition := next((name for name in names if "=" in name and _has_parquet(store, name)), None):
        raise UserError(
            f"{context}: is partitioned Parquet ({partition}/…); write the column {partition.partition('=')[0]} into "
            "the files, and no partitions"
        )
    packed = [name for name in names if _PACKED.search(name)]
    if packed and not any(not why_no_image(name) for name in names) and not store.folders():
        raise UserError(
            f"{context}: holds no images and no tar that can be read by offset, but {packed[0]} ({len(packed)} such); "
            f"unpack or decompress them, such as {base}/{packed[0].partition('.tar')[0].removesuffix('.zip')}.tar"
        )


def _has_parquet(store: Store, folder: str) -> bool:
    return any(suffix_of(name) == "parquet" for name in store.files(folder))


def _file(path: str, context: str) -> tuple[Store, list[str]]:
    """The folder and the name of a tar or a Parquet file."""
    store, name = split_uri(path)
    name = unquote(name) if "://" in path else name
    if not store.exists(name):
        suffix = suffix_of(name)
        kind = "file" if suffix in (*_KINDS, "gz", "tgz", "zip", "zst", "xz") else "folder"
        raise UserError(f"{context}: no such {kind}; {_FORMS}")
    if suffix_of(name) not in _KINDS:
        raise UserError(f"{context}: {_what_file(store, name)}; {_FORMS}")
    return store, [name]


def _what_file(store: Store, name: str) -> str:
    """What a file is that is no source."""
    try:
        with store.stream(name) as file:
            begin = file.read(4)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if kind := compression(begin):
        return f"is compressed ({kind}) and cannot be read by offset; decompress it first"
    if begin[:2] == b"PK":
        return "is a zip archive; unpack it into a folder or a tar"
    if begin == b"PAR1":
        return "is Parquet, but is not called .parquet; rename it"
    return "is a file, and neither a tar nor Parquet by its name"


def _fixed_part(value: str) -> tuple[str, str]:
    """The folder above the first segment with braces or a star, and the rest."""
    at = re.search(r"[{*]", value)
    if at is None:
        return value or "/", ""
    cut = value.rfind("/", 0, at.start())
    return (value[:cut] or "/", value[cut + 1 :]) if cut >= 0 else ("", value)


def _expand(store: Store, pattern: str, context: str) -> list[str]:
    """The files that a pattern names; those that braces name must all be there."""
    names: list[str] = []
    for one in _braces(pattern, context):
        folder, slash, last = one.rpartition("/")
        there = store.files(folder)
        found = sorted(f"{folder}{slash}{name}" for name in fnmatch.filter(there, last))
        if not found:
            raise UserError(f"{context}: {one} is missing in {store}")
        names += found
    return _alike(names, context)


def _braces(pattern: str, context: str) -> list[str]:
    if not set("{}") & set(pattern):
        return [pattern]
    from webdataset.shardlists import expand_urls  # here: it loads torch, which other sources have no use for

    try:
        return list(expand_urls(pattern))
    except ValueError as error:
        raise UserError(f"{context}: {error}; braces come in pairs, such as {{0000..1023}}.tar") from None


def _alike(names: list[str], context: str) -> list[str]:
    kinds = {suffix_of(name) or name for name in names}
    if len(kinds) != 1 or not kinds <= {*_KINDS}:
        raise UserError(f"{context}: names files of several kinds ({', '.join(sorted(kinds))}); all .tar or .parquet")
    return names
