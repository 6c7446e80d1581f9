"""Which part of a source a split of the run file is, where its folders or files are called train, val and so on.

Only the named split is read; the others are left out and reported. A folder around the splits is entered.
What could be read in two ways is refused. Folders are looked at through a `Tree`, on a disk or inside tars.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from schemas.errors import UserError
from stages.sources.names import GROUPS, group_of_file, group_of_folder, wanted_group

_OF = re.compile(r"(.*?)([0-9]+)[-_]of[-_]([0-9]+)(?![0-9])", re.IGNORECASE)
"""What writers call the files of one set: a name, a number, and how many there are."""


class Shape(NamedTuple):
    """What a folder has directly in it."""

    images: bool
    folders: bool


class Tree(Protocol):
    """Folders of a source by their paths below its root, "" = the root itself."""

    def folders(self, path: str) -> Sequence[str]:
        """Sorted names of the folders in a folder, without hidden ones."""

    def shape(self, path: str) -> Shape:
        """What a folder has directly in it."""


class SplitFolder(NamedTuple):
    """The folder of a tree that holds a split's class folders, and the folders beside it that are left out."""

    folder: str
    beside: tuple[str, ...]


class Folders:
    """A tree from the folders of the images."""

    def __init__(self, images: Iterable[str]) -> None:
        self._with_images = set(images)
        self._below: dict[str, set[str]] = {}
        for path in self._with_images:
            while path:
                parent, _, name = path.rpartition("/")
                known = self._below.setdefault(parent, set())
                if name in known:
                    break
                known.add(name)
                path = parent

    def folders(self, path: str) -> Sequence[str]:
        """Sorted names of the folders in a folder."""
        return sorted(self._below.get(path, ()))

    def shape(self, path: str) -> Shape:
        """What a folder has directly in it."""
        return Shape(path in self._with_images, path in self._below)


def find_split(tree: Tree, split: str, known: Collection[str], context: str) -> SplitFolder:
    """The folder with a split's class folders: the one called after the split, below folders that hold nothing else.

    Args:
        tree: the source's folders.
        split: train or val.
        known: names of classes, which are no splits.
        context: the run file's key and value, for messages.

    Raises:
        UserError: if folders are called after splits, but none or several are this one's.
    """
    folder, beside = "", list[str]()
    while True:
        names = tree.folders(folder)
        name = _named(tree, folder, names, split, known, context)
        if name:
            beside += [join(folder, other) for other in names if other != name]
        elif len(names) == 1 and names[0] not in known and not tree.shape(folder).images:
            inner = tree.shape(join(folder, names[0]))
            name = names[0] if inner.folders and not inner.images else ""
        if not name:
            return SplitFolder(folder, tuple(beside))
        folder = join(folder, name)


def _named(tree: Tree, folder: str, names: Sequence[str], split: str, known: Collection[str], context: str) -> str:
    """The folder that is called after the split, or "" where none is called after any."""
    alike = [name for name in names if name.lower() in GROUPS and name not in known]
    groups = {name: GROUPS[name.lower()] for name in alike} or _by_words(tree, folder, names, known)
    alike = list(groups)
    others = [name for name in names if name not in alike]
    if not alike or (len(alike) == 1 and len(others) > 1 and _are_classes(tree, folder, names)):
        return ""
    group = wanted_group(groups.values(), split)
    found = [name for name in alike if groups[name] == group]
    if len(found) != 1:
        there = ", ".join([*alike, *others][:8])
        raise UserError(
            f"{context}: holds the folders {there}, "
            + (f"of which {' and '.join(found)} could be {split}" if found else f"none of which is {split}")
            + f"; name one, such as {context.partition(' = ')[2]}/{join(folder, alike[0])}, or list them in "
            "source.classes, if they are classes"
        )
    return found[0]


def _by_words(tree: Tree, folder: str, names: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Folders with a split's word in their names, and which: those of folders only, or all where no other is there."""
    groups = {name: group for name in names if name not in known and (group := group_of_folder(name))}
    if len(groups) == len(names) and len(set(groups.values())) > 1:
        return groups
    inner = {name: tree.shape(join(folder, name)) for name in groups}
    return {name: group for name, group in groups.items() if inner[name] == Shape(images=False, folders=True)}


def _are_classes(tree: Tree, folder: str, names: Sequence[str]) -> bool:
    """Whether all of the folders have images directly inside, so that a folder named train is a class as well."""
    return all(tree.shape(join(folder, name)) == Shape(images=True, folders=False) for name in names)


def check_no_parallel_folders(tree: Tree, folder: str, known: Collection[str], context: str) -> None:
    """Raise UserError where the folders in a folder all hold the same folders, as fold0/a, fold0/b, fold1/a, fold1/b.

    A single folder such as `images` in each is no choice, and neither are folders with images directly inside.
    """
    names = tree.folders(folder)
    if len(names) < 2 or set(names) <= set(known):
        return
    inner = tree.folders(join(folder, names[0]))
    if len(inner) < 2 or any(name.lower() in GROUPS for name in inner):
        return  # splits below classes, which `check_no_splits_below` names
    if all(not tree.shape(join(folder, name)).images and tree.folders(join(folder, name)) == inner for name in names):
        raise UserError(
            f"{context}: its folders {names[0]} and {names[1]} both hold the folders {', '.join(inner[:3])}: which are "
            f"the classes? Name one, such as {context.partition(' = ')[2]}/{join(folder, names[0])}, or list "
            f"{', '.join(names[:2])} and so on in source.classes"
        )


def check_no_splits_below(folders: Iterable[str], context: str) -> None:
    """Raise UserError where class folders hold folders of several splits, <class>/train and <class>/val."""
    seen: dict[str, str] = {}
    for path in folders:
        for name in path.split("/")[1:]:
            if name.lower() in GROUPS:
                seen.setdefault(GROUPS[name.lower()], path)
    if len(seen) > 1:
        raise UserError(
            f"{context}: its class folders hold folders of several splits, such as {' and '.join(seen.values())}; "
            "move them to <split>/<class>, and name one split"
        )


def choose_files(names: Sequence[str], split: str, known: Collection[str], context: str) -> list[str]:
    """Of a folder's tars or Parquet files, those of the split that is meant, where their names say of which they are.

    Raises:
        UserError: if it cannot be told which are meant.
    """
    groups = _groups(names, known)
    if not groups:
        return list(names)
    group = wanted_group(groups.values(), split)
    rest = [name for name in names if name not in groups]
    if rest or (len(set(groups.values())) > 1 and not group):
        example = rest[0] if rest else names[0]
        raise UserError(
            f"{context}: holds files of the splits {', '.join(sorted(set(groups.values())))}"
            f"{f' and others, such as {example}' if rest else f', none of which is {split}'}; name those of one split "
            f"with a pattern, such as {context.partition(' = ')[2]}/{split}-*{example[example.rfind('.') :]}"
        )
    return [name for name in names if groups[name] == group] if len(set(groups.values())) > 1 else list(names)


def missing_files(names: Sequence[str], context: str) -> str:
    """Which of the files that are numbered as `train-00000-of-00005` are missing, in words; "" = none.

    Raises:
        UserError: if there are files of two sets, as an earlier export leaves them, since both hold the same images.
    """
    sets: dict[str, dict[int, dict[int, str]]] = {}
    for name in names:
        if match := _OF.match(name):
            numbers = sets.setdefault(match[1], {}).setdefault(int(match[3]), {})
            if (other := numbers.setdefault(int(match[2]), name)) != name:
                raise UserError(f"{context}: holds {other} and {name}, the same file of two exports; remove one set")
    for totals in sets.values():
        if len(totals) > 1:
            first, second = (next(iter(numbers.values())) for numbers in list(totals.values())[:2])
            raise UserError(f"{context}: holds {first} and {second}, which are of two exports; remove one set")
        ((total, numbers),) = totals.items()
        begin = 1 if total in numbers and 0 not in numbers else 0  # some writers count from 1
        if lost := [number for number in range(begin, begin + total) if number not in numbers]:
            return f"{len(lost)} of {total} files are missing, such as number {lost[0]} beside {min(numbers.values())}"
    return ""


def check_one_split(names: Sequence[str], known: Collection[str], context: str) -> None:
    """Raise UserError where a pattern names files of several splits."""
    groups = _groups(names, known)
    if len(set(groups.values())) > 1:
        one, other = (
            next(name for name in names if groups.get(name) == group) for group in sorted(set(groups.values()))[:2]
        )
        raise UserError(f"{context}: names files of several splits, such as {one} and {other}; name those of one")


def _groups(names: Sequence[str], known: Collection[str]) -> Mapping[str, str]:
    """File → the split that its name tells; nothing where a name is that of a class among others."""
    found = {name: group for name in names if name.rpartition(".")[0] not in known and (group := group_of_file(name))}
    lone = next(iter(found), "").rpartition(".")[0]
    return {} if len(found) == 1 and len(names) > 2 and lone.lower() in GROUPS else found


def join(folder: str, name: str) -> str:
    """A path below a root, "" = the root."""
    return f"{folder}/{name}".strip("/")
