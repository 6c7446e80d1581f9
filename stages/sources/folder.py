"""Image folders as sources, `<root>/<class>/**/<image>`, on a disk or an object store; and flat ones with labels."""

import os
from collections.abc import Iterator

from schemas.errors import PipelineError
from stages.sources.labels import Labels
from stages.sources.listing import Classes, Collector, Listing, Source
from stages.store import Store

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
SPLITS = frozenset({"train", "val", "validation", "test"})
_NAMES = {"train": ("train",), "val": ("val", "validation", "test")}


def list_folder(store: Store, classes: Classes, labels: Labels | None, where: str) -> Listing:
    """List an image folder; a folder without class folders takes its classes from `labels`.

    Raises:
        PipelineError: if there is no image, a class has none, or a class is not in the list.
    """
    collector = Collector()
    folders = store.folders()
    if labels is not None and folders:
        raise PipelineError(f"{where}: has class folders, such as {folders[0]}; unset source.val_labels")
    for name in folders:
        collector.expect(name)
        for path, size in _files_below(store, name):
            if is_image(path):
                collector.add(name, path, size=size)
            else:
                collector.other_files += 1
    for name, size in store.files().items():
        if labels is not None and is_image(name):
            collector.add(labels.take(name), name, size=size)
        elif is_image(name) and not folders:
            raise PipelineError(f"{where}: its images have no class folders; name their classes in source.val_labels")
        else:
            collector.other_files += 1
    if labels is not None:
        labels.check_all_seen(where)
    return collector.listing(Source(store.absolute, "files"), classes, where, sort=True)


def split_folder(names: set[str], split: str, where: str) -> str:
    """Which of the folders `train`, `val` and so on holds the split.

    Raises:
        PipelineError: if none does, or two.
    """
    found = [name for name in _NAMES[split] if name in names]
    if len(found) != 1:
        raise PipelineError(f"{where}: holds the folders {', '.join(sorted(names))}; name one, such as {where}/train")
    return found[0]


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image; hidden files are none."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES and not base.startswith(".")


def _files_below(store: Store, folder: str) -> Iterator[tuple[str, int]]:
    """Names below the root and lengths of all files in a folder, at any depth; links to folders are not followed."""
    local = store.local_path(folder)
    if local is None:
        yield from store.files_below(folder)
        return
    for entry in os.scandir(local):
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(store, f"{folder}/{entry.name}")
        elif entry.is_file():
            yield f"{folder}/{entry.name}", entry.stat().st_size
