"""Image folders as sources, `<root>/<class>/**/<image>`, on a disk or an object store; and flat ones with labels.

Every entry is met and counted: an image, a file that is left out, or what is never read, such as a link to nothing.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from schemas.errors import UserError
from stages.sources.class_labels import Labels
from stages.sources.class_names import Classes
from stages.sources.listing import Collector, Listing, Source
from stages.sources.names import is_hidden, suffix_of, why_no_image
from stages.sources.splits import Shape, check_no_splits_below, join
from stages.storage.store import Store

_PACKED = ("tar", "parquet")


class Entry(NamedTuple):
    """What a folder has directly in it: name, whether it is a folder, length in bytes, why it is never read, or ""."""

    name: str
    is_folder: bool
    size: int
    fault: str


@dataclass
class DiskTree:
    """The folders of a store, as `stages.sources.splits` looks at them."""

    store: Store

    def folders(self, path: str) -> Sequence[str]:
        """Sorted names of the folders in a folder, without hidden ones; links to folders elsewhere among them."""
        return sorted(one.name for one in entries(self.store, path) if one.is_folder and not is_hidden(one.name))

    def shape(self, path: str) -> Shape:
        """What a folder has directly in it."""
        images = folders = False
        for one in entries(self.store, path, follow=False):
            images |= not one.is_folder and not why_no_image(one.name)
            folders |= one.is_folder and not is_hidden(one.name)
        return Shape(images, folders)


def list_folder(store: Store, classes: Classes, labels: Labels | None, context: str) -> Listing:
    """List an image folder; a folder without class folders takes its classes from `labels`.

    Raises:
        UserError: if there is no image, a class has none, or a class is not in the list.
    """
    collector = Collector()
    folders = _walk_classes(store, collector, labels is None, context)
    if labels is not None and folders:
        raise UserError(f"{context}: has class folders, such as {folders[0]}; unset source.val_labels")
    for entry in entries(store, ""):
        reason = why_no_image(entry.name)
        if entry.is_folder:
            for path, _ in _files_below(store, entry.name) if is_hidden(entry.name) else ():
                collector.leave_out("hidden", path)
        elif _may_hold_images(entry):
            collector.refuse(entry.name, entry.fault)
        elif reason:
            collector.leave_out(reason, entry.name)
        elif labels is not None:
            _take(collector, labels.take(entry.name), entry.name, entry)
        elif not folders:
            raise UserError(f"{context}: its images have no class folders; name their classes in source.val_labels")
        else:
            collector.leave_out("image outside the class folders", entry.name)
    if labels is not None:
        labels.check_all_seen(context)
    what = "flat images, classes from source.val_labels" if labels is not None else "an image folder, a folder a class"
    source = Source(store.absolute, "files")
    return collector.listing(source, classes, context, what=what, sort=True)


def entries(store: Store, folder: str, *, follow: bool = True) -> Iterator[Entry]:
    """All that is directly in a folder, sorted by name on no store in particular.

    Args:
        store: of the source.
        folder: below it.
        follow: links to folders are folders, except to those of the source itself.
    """
    local = store.local_path(folder)
    if local is None:
        yield from (Entry(name, False, size, "") for name, size in store.files(folder).items())
        yield from (Entry(name, True, 0, "") for name in store.folders(folder))
        return
    with os.scandir(local) as found:
        for entry in found:
            if entry.is_symlink():
                yield _linked(entry, str(store.local_path("")), follow)
            elif entry.is_dir():
                yield Entry(entry.name, True, 0, "")
            elif entry.is_file():
                yield Entry(entry.name, False, entry.stat().st_size, "")
            else:
                yield Entry(entry.name, False, 0, "is not a plain file")


def has_images_below(store: Store, folder: str) -> bool:
    """Whether there is an image anywhere in a folder."""
    if store.local_path(folder) is None:
        return any(not why_no_image(path) for path, _ in store.files_below(folder))
    inner = []
    for entry in entries(store, folder, follow=False):
        if entry.is_folder:
            inner.append(entry.name)
        elif not why_no_image(entry.name):
            return True
    return any(has_images_below(store, join(folder, name)) for name in inner if not is_hidden(name))


def _linked(entry: "os.DirEntry[str]", root: str, follow: bool) -> Entry:
    try:
        target = os.stat(entry.path)
    except OSError:
        return Entry(entry.name, False, 0, "is a link to nothing")
    if stat.S_ISREG(target.st_mode):
        return Entry(entry.name, False, target.st_size, "")
    if not stat.S_ISDIR(target.st_mode):
        return Entry(entry.name, False, 0, "is not a plain file")
    real, home = os.path.realpath(entry.path), os.path.realpath(root)
    if not follow or os.path.commonpath((real, home)) in (real, home):
        return Entry(entry.name, False, 0, "is a link to a folder, which is not followed")
    return Entry(entry.name, True, 0, "")


def _walk_classes(store: Store, collector: Collector, are_classes: bool, context: str) -> list[str]:
    """Take all images of the class folders; the names of these, sorted."""
    folders = sorted(one.name for one in entries(store, "") if one.is_folder and not is_hidden(one.name))
    inner, last = set[str](), ""
    for name in folders if are_classes else ():
        collector.expect(name)
        packed, before = 0, collector.taken
        for path, entry in _files_below(store, name):
            if (folder := path.rpartition("/")[0]) != last:
                inner.add(folder)
                last = folder
            if _may_hold_images(entry):
                collector.refuse(path, entry.fault)
            elif reason := why_no_image(path):
                packed += suffix_of(path) in _PACKED
                collector.leave_out(reason, path)
            else:
                _take(collector, name, path, entry)
        if packed and collector.taken == before:
            raise UserError(
                f"{context}: folder {name} holds no images, but {packed} files of tar or Parquet; name them as the "
                f"source, such as {context.partition(' = ')[2]}/{name}"
            )
    check_no_splits_below(sorted(inner), context)
    return folders


def _take(collector: Collector, class_name: str, path: str, entry: Entry) -> None:
    if entry.fault:
        collector.refuse(path, entry.fault)
    else:
        collector.add(class_name, path, size=entry.size)


def _may_hold_images(entry: Entry) -> bool:
    """Whether this is a link that is not followed and by its name may be one to a folder of images."""
    return entry.fault.startswith("is a link") and not suffix_of(entry.name) and not is_hidden(entry.name)


def _files_below(store: Store, folder: str) -> Iterator[tuple[str, Entry]]:
    """Names below the root of all that is in a folder, at any depth; links to folders are not followed."""
    if store.local_path(folder) is None:
        yield from ((path, Entry(path, False, size, "")) for path, size in store.files_below(folder))
        return
    for entry in entries(store, folder, follow=False):
        if entry.is_folder:
            yield from _files_below(store, f"{folder}/{entry.name}")
        else:
            yield f"{folder}/{entry.name}", entry
