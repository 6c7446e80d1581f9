"""What tars hold, told from the names of all their members; what could be read in two ways is refused.

A `Survey` is of one tar. `tell` returns the form of all tars of a source: each must be of one form, and where
several readings remain, `source.classes` decides, since it lists the names that one of them finds.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from schemas.errors import UserError
from stages.sources.class_names import Classes
from stages.sources.headers import TarMember
from stages.sources.names import GROUPS, IMAGE_SUFFIXES, is_hidden, suffix_of
from stages.sources.splits import (
    Folders,
    SplitFolder,
    check_no_parallel_folders,
    check_no_splits_below,
    find_split,
)

Form = Literal["samples", "class tars", "folder", "flat", "nothing"]
SAID: dict[Form, str] = {
    "samples": "WebDataset samples",
    "class tars": "class tars",
    "folder": "folders of images",
    "flat": "images without folders",
    "nothing": "no images",
}
_SHARD = re.compile(
    r"(?i)(?:.*[-_. ])?(?:shard|part|chunk|split|data|images?|batch|train|val|test)?[-_. ]*[0-9]+(?:[-_]of[-_][0-9]+)?"
)
"""Names that writers of shards give, and few classes have."""
_NUMBER = re.compile("[0-9]+")


class Reading(NamedTuple):
    """What the tars of a source are, the folder in them that is read, and the folders beside that."""

    form: Form
    place: SplitFolder


class Survey:
    """What one tar holds: images and tars by folder, other files by suffix, and the first key with a dot."""

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.tars: Counter[str] = Counter()
        self.dotted, self.plain = "", 0

    def see(self, name: str) -> None:
        """Take a member's name into account."""
        folder, _, base = name.rpartition("/")
        suffix = suffix_of(base)
        if is_hidden(name):
            return
        if suffix in IMAGE_SUFFIXES:
            self.images[folder] += 1
            return
        self.others[suffix] += 1
        if suffix == "cls":
            self.plain += base.count(".") == 1
            self.dotted = self.dotted or (name if base.count(".") > 1 else "")
        elif suffix == "tar":
            self.tars[folder] += 1

    def watch(self, members: Iterator[TarMember]) -> Iterator[TarMember]:
        """The members, each seen."""
        for member in members:
            self.see(member.name)
            yield member

    @property
    def form(self) -> Form:
        """What the tar is by itself."""
        if self.others["cls"]:
            return "samples"
        if self.tars:
            return "class tars"
        if not self.images:
            return "nothing"
        return "flat" if set(self.images) == {""} else "folder"

    @property
    def fields(self) -> str:
        """A suffix that about every image has beside it, as img2dataset's `.json` and `.txt`, or ""."""
        count = self.images.total()
        return next((suffix for suffix, files in self.others.items() if suffix and files >= max(2, count // 2)), "")

    def tops(self, place: SplitFolder) -> set[str]:
        """The folders directly in a place that have images."""
        inside = (below(folder, place.folder) for folder in self.images)
        return {folder.partition("/")[0] for folder in inside if folder}


def tell(
    surveys: Sequence[Survey], files: Sequence[str], split: str, classes: Classes, labelled: bool, context: str
) -> Reading:
    """What a source's tars are.

    Args:
        surveys: of each of them, or, for a guess, of the first.
        files: the names of all.
        split: train or val.
        classes: class names by index, as far as they are given.
        labelled: whether `source.val_labels` gives the classes.
        context: the run file's key and value, for messages.

    Raises:
        UserError: if they are of several forms, or could be read in two ways.
    """
    known = set(classes) if isinstance(classes, tuple) else set[str]()
    form = _one_form(surveys, files, context)
    for survey in surveys:
        _check_one(survey, form, context)
    place = _place(surveys, split, known, context)
    if labelled:
        if form == "samples" or form == "class tars" or any(survey.tops(place) for survey in surveys):
            raise UserError(f"{context}: has classes of its own; unset source.val_labels")
        return Reading("flat", place)
    if form == "flat" or (form == "folder" and not any(survey.tops(place) for survey in surveys)):
        if len(files) == 1:
            _refuse_fields(surveys[0], "", context)
            raise UserError(f"{context}: its images have no classes; name them with source.val_labels")
        check_class_tars({stem(file): survey for file, survey in zip(files, surveys, strict=False)}, known, context)
        return Reading("flat", place)
    if form == "folder" and len(files) > 1 and _tars_are_classes(surveys, files, place, known, context):
        return Reading("flat", SplitFolder("", ()))
    if form == "folder":
        _check_folders(surveys, place, known, context)
    return Reading(form, place)


def check_class_tars(surveys: dict[str, Survey], known: set[str], context: str) -> None:
    """Raise UserError where tars by their names may be shards or splits, not classes, unless these are known."""
    if surveys.keys() <= known:
        return
    for name, survey in surveys.items():
        _refuse_fields(survey, f"{name}.tar ", context)
    names = list(surveys)
    alike = [name for name in names if name.lower() in GROUPS]
    if alike and (len(alike) > 1 or len(names) < 3):
        raise UserError(f"{context}: the tars {', '.join(names[:3])} are called after splits; name one of them")
    if len(names) > 1 and _like_shards(names):
        raise UserError(
            f"{context}: the tars {', '.join(names[:3])} hold images without folders and without .cls, and are called "
            "like shards rather than classes; list their names in source.classes, if they are classes"
        )


def stem(file: str) -> str:
    """A tar's name without its suffix."""
    return PurePosixPath(file).stem


def below(path: str, folder: str) -> str:
    """A folder's path below another one, and "" for what is not below it."""
    if not folder:
        return path
    return path[len(folder) + 1 :] if path.startswith(f"{folder}/") else ""


def _one_form(surveys: Sequence[Survey], files: Sequence[str], context: str) -> Form:
    forms: dict[Form, str] = {}
    for survey, file in zip(surveys, files, strict=False):
        forms.setdefault(survey.form, file)
    if len(forms) > 1:
        forms.pop("nothing", None)  # what is in such a tar is left out, and counted
    told = {SAID[form]: file for form, file in forms.items()}
    if len(told) > 1:
        (one, file), (other, second) = list(told.items())[:2]
        raise UserError(
            f"{context}: {file} holds {one}, {second} holds {other}; all must be of one form, name those that are"
        )
    return next(iter(forms))


def _check_one(survey: Survey, form: Form, context: str) -> None:
    """Raise UserError for what a single tar may not hold."""
    if survey.dotted and not survey.plain:
        raise UserError(
            f"{context}: {survey.dotted} has a dot within its key, and readers of WebDataset would look for no .cls "
            "there; rename the samples' keys so that the first dot begins the suffix"
        )
    if form == "class tars" and survey.images:
        image, tar = (f"{next(iter(found))}/".removeprefix("/") for found in (survey.images, survey.tars))
        raise UserError(
            f"{context}: holds {survey.tars.total()} tars ({tar}*.tar) beside {survey.images.total()} images "
            f"({image}*); class tars or an image folder? Name the folder in it that is meant, or remove the others"
        )


def _place(surveys: Sequence[Survey], split: str, known: set[str], context: str) -> SplitFolder:
    folders = set[str]().union(*(survey.images or survey.tars for survey in surveys))
    return find_split(Folders(folders), split, known, context)


def _refuse_fields(survey: Survey, name: str, context: str) -> None:
    if fields := survey.fields:
        raise UserError(
            f"{context}: {name}holds images with .{fields} beside them, samples without .cls as img2dataset writes "
            "them; add the class to each as .cls, or, if the tars are classes, list their names in source.classes"
        )


def _tars_are_classes(
    surveys: Sequence[Survey], files: Sequence[str], place: SplitFolder, known: set[str], context: str
) -> bool:
    """Whether class tars have a folder inside, so that their own names are the classes; else the folders are."""
    tops, stems = [survey.tops(place) for survey in surveys], [stem(file) for file in files]
    folders = set[str]().union(*tops)
    if folders <= known or all(top == {name} for top, name in zip(tops, stems, strict=False)):
        return False
    if set(stems) <= known:
        return True
    if any(len(top) > 1 for top in tops):
        return False
    distinct = len(folders) == len(surveys)
    if distinct and _like_shards(stems):
        return False
    raise UserError(
        f"{context}: {files[0]} holds the folder {', '.join(tops[0]) or '(none)'}: is the tar's name or the folder's "
        "the class? List the names that are in source.classes"
    )


def _like_shards(names: Collection[str]) -> bool:
    """Whether names are one name with different numbers, as writers of shards give them."""
    return all(map(_SHARD.fullmatch, names)) and len({_NUMBER.sub("0", name) for name in names}) == 1


def _check_folders(surveys: Sequence[Survey], place: SplitFolder, known: set[str], context: str) -> None:
    inside = [inner for survey in surveys for folder in survey.images if (inner := below(folder, place.folder))]
    check_no_splits_below(inside, context)
    check_no_parallel_folders(Folders(inside), "", known, context)
    tops = {folder.partition("/")[0] for folder in inside}
    if not tops <= known and any(survey.fields for survey in surveys) and _like_shards(tops):
        _refuse_fields(next(survey for survey in surveys if survey.fields), "", context)
