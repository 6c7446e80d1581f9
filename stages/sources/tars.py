"""Tars as sources, read by offset and never unpacked: class tars, an image folder, flat images, WebDataset shards.

Nothing in a tar is followed: a link is no image, and a path with `..` is refused. A tar that ends in the middle is
an error, since tarfile itself takes a cut at a header for the end.
"""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from schemas.errors import PipelineError
from stages.sources.folder import SPLITS, is_image, split_folder
from stages.sources.labels import Labels
from stages.sources.listing import Classes, Collector, Listing, Source
from stages.store import Store

_PEEK = 1000
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_LONGEST_LABEL = 200

Kind = Literal["samples", "class tars", "folder", "flat"]


class Member(NamedTuple):
    """A file in a tar: its name, where its bytes are, and why it is never read, or ""."""

    name: str
    offset: int
    size: int
    fault: str


def list_tars(
    store: Store, files: Sequence[str], below: str, split: str, classes: Classes, labels: Labels | None, where: str
) -> Listing:
    """List the images of tars.

    Args:
        store: of the folder they lie in.
        files: their names.
        below: the folder inside a tar that is the image folder; "" = the whole tar, or its `train` or `val`.
        split: train or val.
        classes: class names by index, or None.
        labels: classes of flat images.
        where: the run file's key and value, for messages.

    Raises:
        PipelineError: if one is not a whole tar, or they do not hold classes of images.
    """
    with store.stream(files[0]) as file:
        kind = _tell([member.name for member in islice(members(file, store.name(files[0])), _PEEK)], where)
    if labels is not None and kind != "flat":
        raise PipelineError(f"{where}: has classes of its own; unset source.val_labels")
    if kind == "flat" and labels is None and len(files) == 1:
        raise PipelineError(f"{where}: its images have no classes; name them with source.val_labels")
    collector = Collector()
    walk: dict[Kind, Callable[[Any, int, str, Collector], None]] = {
        "samples": _walk_samples,
        "class tars": _walk_class_tars,
        "folder": _FolderWalk(_prefix(store, files[0], split, where) if kind == "folder" and not below else below),
        "flat": _walk_class_tar if labels is None else partial(_walk_labelled, labels),
    }
    for number, path in enumerate(files):
        with store.stream(path) as file:
            walk[kind](file, number, store.name(path), collector)
    if labels is not None:
        labels.check_all_seen(where)
    source = Source(store.absolute, "members", tuple(files))
    return collector.listing(source, classes, where, sort=kind != "samples", samples=kind == "samples")


def members(file: Any, where: str, end: int | None = None) -> Iterator[Member]:
    """The files of the tar that begins where `file` stands; folders are passed by.

    Raises:
        PipelineError: if it is not a whole tar, or reaches beyond `end`.
    """
    start = file.tell()
    if kind := _COMPRESSED.get(file.read(2)):
        raise PipelineError(f"{where}: is compressed ({kind}) and cannot be read by offset; decompress it first")
    file.seek(start)
    try:
        tar: Any = tarfile.TarFile(fileobj=file)
        while (info := tar.next()) is not None:
            tar.members.clear()  # it would keep them all
            if end is not None and info.offset_data + info.size > end:
                raise tarfile.ReadError("reaches beyond its end")
            if not info.isdir():
                yield Member(info.name.removeprefix("./"), info.offset_data, info.size, _fault(info))
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("is damaged or ends in the middle")
    except tarfile.TarError as error:
        raise PipelineError(f"{where}: not a whole tar ({error}); copy or download it again") from None


def _tell(names: Sequence[str], where: str) -> Kind:
    """What a tar is, from the names in it."""
    if any(_extension(name) == "cls" for name in names):
        return "samples"
    if any(name.endswith(".tar") for name in names):
        return "class tars"
    images = [name for name in names if is_image(name)]
    if not images:
        raise PipelineError(f"{where}: holds no images; see docs/sources.md for the forms a source can have")
    return "folder" if any("/" in name for name in images) else "flat"


def _prefix(store: Store, path: str, split: str, where: str) -> str:
    """The folder of a tar that holds the split: its `train` or `val`, where it has nothing else."""
    with store.stream(path) as file:
        tops: set[str] = set()
        for member in members(file, store.name(path)):
            tops.add(member.name.split("/")[0])
            if not tops & SPLITS:
                return ""
    return split_folder(tops, split, where)


def _walk_class_tars(file: Any, number: int, where: str, into: Collector) -> None:
    for outer in members(file, where):
        path = PurePosixPath(outer.name)
        if path.suffix != ".tar":
            into.other_files += 1
        elif outer.fault:
            into.refuse(outer.name, outer.fault)
        else:
            into.expect(path.stem)
            file.seek(outer.offset)
            for inner in members(file, f"{where}, {outer.name}", outer.offset + outer.size):
                _take(inner, path.stem, f"{path.stem}/{inner.name}", number, into)


def _walk_labelled(labels: Labels, file: Any, number: int, where: str, into: Collector) -> None:
    for member in members(file, where):
        if is_image(member.name):
            _take(member, labels.take(member.name), member.name, number, into)
        else:
            into.other_files += 1


def _walk_class_tar(file: Any, number: int, where: str, into: Collector) -> None:
    """A class tar by itself: its class is its name."""
    name = PurePosixPath(where).stem
    into.expect(name)
    for member in members(file, where):
        _take(member, name, f"{name}/{member.name}", number, into)


class _FolderWalk:
    """Walks an image folder inside a tar: the first folder below the prefix is the class."""

    def __init__(self, below: str) -> None:
        self._prefix = f"{below.strip('/')}/" if below else ""

    def __call__(self, file: Any, number: int, where: str, into: Collector) -> None:
        for member in members(file, where):
            if not member.name.startswith(self._prefix):
                continue
            name = member.name.removeprefix(self._prefix)
            class_name, slash, _ = name.partition("/")
            if slash:
                _take(member, class_name, name, number, into)
            else:
                into.other_files += 1


def _walk_samples(file: Any, number: int, where: str, into: Collector) -> None:
    shard = PurePosixPath(where).name
    for key, group in groupby(members(file, where), key=lambda member: _key(member.name)):
        sample = {_extension(member.name): member for member in group}
        image = next((member for extension, member in sample.items() if is_image(f"x.{extension}")), None)
        label = sample.get("cls")
        if image is None and label is None:
            into.other_files += len(sample)
        elif image is None or label is None:
            into.refuse(f"{shard}/{key}", "has no image" if image is None else "has no .cls")
        elif image.fault or label.fault:
            into.refuse(f"{shard}/{image.name}", image.fault or label.fault)
        else:
            file.seek(label.offset)
            text = file.read(min(label.size, _LONGEST_LABEL)).decode("utf-8", "replace").strip()
            name = f"{shard}/{image.name}"
            into.add(int(text) if text.isdecimal() else text, name, file=number, offset=image.offset, size=image.size)


def _take(member: Member, class_name: str, name: str, number: int, into: Collector) -> None:
    if not is_image(member.name):
        into.other_files += 1
    elif member.fault:
        into.refuse(name, member.fault)
    else:
        into.add(class_name, name, file=number, offset=member.offset, size=member.size)


def _fault(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link"
    if not info.isreg() or info.issparse():
        return "is not a plain file"
    path = PurePosixPath(info.name)
    return "has a path that leaves the archive" if ".." in path.parts or path.is_absolute() else ""


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()
