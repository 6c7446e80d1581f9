"""Sources: where images lie, as references that a shard's maker can open anywhere.

A listing is sorted by class and name, so it is the same on every machine. Class indices come from the sorted
class names, or from `source.classes`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import PipelineError
from schemas.receipts import fingerprint

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image of a source: its name below the root, its class index and its length in bytes."""

    name: str
    class_index: int
    size: int


@dataclass(frozen=True)
class Listing:
    """All images of a source, in order, and the class names by index."""

    root: str
    images: tuple[ImageRef, ...]
    classes: tuple[str, ...]
    other_files: int

    def fingerprint(self) -> str:
        """Changes with any image's name, class or length, not with the root."""
        return fingerprint([[image.name, image.class_index, image.size] for image in self.images])


def list_folder(root: str, classes: tuple[str, ...] | None, key: str) -> Listing:
    """List an image folder, `<root>/<class>/**/<image>`.

    Args:
        root: the folder.
        classes: class names by index; None = the sorted names of the class folders.
        key: the run file's key, for messages.

    Raises:
        PipelineError: if the folder is missing or empty, a class has no image, or a folder is no known class.
    """
    if not root:
        raise PipelineError(f"{key} is not set; give an image folder, <root>/<class>/*.jpg")
    if not Path(root).is_dir():
        raise PipelineError(f"{key} = {root}: no such folder; give an image folder, <root>/<class>/*.jpg")
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise PipelineError(f"{key} = {root}: has no class folders; give an image folder, <root>/<class>/*.jpg")
    names = classes if classes is not None else tuple(found)
    index = {name: number for number, name in enumerate(names)}
    if unknown := [name for name in found if name not in index]:
        raise PipelineError(
            f"{key} = {root}: folder {unknown[0]} is no class of source.classes "
            f"({len(unknown)} such); rename it or add it to the list"
        )
    images: list[ImageRef] = []
    other_files = 0
    for name in found:
        files = list(_files_below(root, name))
        mine = [ImageRef(path, index[name], size) for path, size in sorted(files) if _is_image(path)]
        if not mine:
            raise PipelineError(
                f"{key} = {root}: class folder {name} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                "add some or remove the folder"
            )
        images += mine
        other_files += len(files) - len(mine)
    return Listing(root=root, images=tuple(images), classes=names, other_files=other_files)


def read_classes(value: str) -> tuple[str, ...] | None:
    """Class names by index from `source.classes`: "" = None, "imagenet-1k", or a file with one name a line.

    Raises:
        PipelineError: if the file is missing, empty or names a class twice.
    """
    if not value:
        return None
    if value == "imagenet-1k":
        from timm.data import ImageNetInfo

        return tuple(ImageNetInfo("imagenet-1k").label_names())
    try:
        names = [line.strip() for line in Path(value).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f'source.classes = {value}: cannot be read ({error}); "" = sorted folder names') from None
    if not names:
        raise PipelineError(f"source.classes = {value}: is empty; one class name a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PipelineError(f"source.classes = {value}: names {twice} twice; every class once")
    return tuple(names)


def _files_below(root: str, folder: str) -> list[tuple[str, int]]:
    """Names below the root and lengths of all files in a folder, at any depth; links to folders are not followed."""
    found = []
    for entry in os.scandir(f"{root}/{folder}"):
        if entry.is_dir(follow_symlinks=False):
            found += _files_below(root, f"{folder}/{entry.name}")
        elif entry.is_file():
            found.append((f"{folder}/{entry.name}", entry.stat().st_size))
    return found


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not os.path.basename(name).startswith(".")
