"""Tars as sources, read by offset and never unpacked: class tars, an image folder, flat images, WebDataset shards.

All members of all tars decide what they are (`survey.py`). They are walked once where the first members tell as much,
and once more where those mislead. Nothing in a tar is followed: a link is no image, and a path with `..` is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby, islice
from typing import Any, NamedTuple

from schemas.errors import UserError
from stages.sources.class_labels import Labels
from stages.sources.class_names import LONGEST_LABEL, Classes, LabelCheck, label_text
from stages.sources.headers import TarMember, members
from stages.sources.listing import Collector, Listing, Source
from stages.sources.names import IMAGE_SUFFIXES, is_hidden, suffix_of, why_no_image
from stages.sources.splits import SplitFolder, join
from stages.sources.survey import Reading, Survey, check_class_tars, stem, tell
from stages.storage.store import Store

_PEEK = 1000


class _OpenTar(NamedTuple):
    """One of a source's tars, open: its number, its name in messages, the folder that is read, and what is in that."""

    file: Any
    number: int
    context: str
    folder: str
    members: Iterator[TarMember]


_Walk = Callable[[_OpenTar, Collector], None]


def list_tars(
    store: Store, files: Sequence[str], below: str, split: str, classes: Classes, labels: Labels | None, context: str
) -> Listing:
    """List the images of tars.

    Args:
        store: of the folder they are in.
        files: their names.
        below: the folder inside a tar that is the source; "" = the complete tar.
        split: train or val.
        classes: class names by index, or None.
        labels: classes of flat images.
        context: the run file's key and value, for messages.

    Raises:
        UserError: if one is not a complete tar, they are of several forms, or do not hold classes of images.
    """

    def told(surveys: Sequence[Survey]) -> Reading:
        return tell(surveys, files, split, classes, labels is not None, context)

    with store.stream(files[0]) as file:
        first = Survey()
        for member in islice(_inside(members(file, store.display_path(files[0])), below), _PEEK):
            first.see(member.name)
    guess = Reading("nothing", SplitFolder("", ()))
    with suppress(UserError):
        guess = told([first])
    while True:
        collector, surveys = Collector(), []
        walk = _walk(guess, classes, labels)
        for number, path in enumerate(files):
            surveys.append(Survey())
            with store.stream(path) as file:
                name = store.display_path(path)
                seen = surveys[-1].watch(_inside(members(file, name), below))
                seen = _in_place(seen, guess.place, collector)
                walk(_OpenTar(file, number, name, join(below.strip("/"), guess.place.folder), seen), collector)
        reading = told(surveys)
        if reading == guess or reading.form == "nothing":
            break
        guess = reading
    if labels is not None:
        labels.check_all_seen(context)
    source = Source(store.absolute, "members", tuple(files))
    samples = reading.form == "samples"
    listing = collector.listing(
        source, classes, context, what=_what(reading, len(files), below, labels), sort=not samples, samples=samples
    )
    return replace(listing, beside=tuple(join(below, folder) for folder in reading.place.beside))


def _what(reading: Reading, count: int, below: str, labels: Labels | None) -> str:
    form = {
        "samples": "of WebDataset samples, classes from .cls",
        "class tars": "of class tars, a tar a class",
        "folder": "with an image folder, a folder a class",
        "flat": "with flat images, " + ("classes from source.val_labels" if labels else "a tar a class"),
        "nothing": "of nothing",
    }[reading.form]
    inside = join(below.strip("/"), reading.place.folder)
    return f"{count:,} tar{'s' if count != 1 else ''} {form}" + (f", {inside}/ in it" if inside else "")


def _walk(reading: Reading, classes: Classes, labels: Labels | None) -> _Walk:
    if reading.form == "samples":
        check = LabelCheck(classes)
        return lambda tar, into: _walk_samples(tar, check, into)
    if reading.form == "class tars":
        return lambda tar, into: _walk_class_tars(tar, classes, into)
    if reading.form == "folder":
        return _walk_folder
    if reading.form == "flat":
        return _walk_class_tar if labels is None else lambda tar, into: _walk_labelled(tar, labels, into)
    return lambda tar, into: _walk_nothing(tar, into)


def _inside(members: Iterator[TarMember], folder: str) -> Iterator[TarMember]:
    """The members in a folder that is named as the source, with names below it; the others are no part of it."""
    if not folder:
        return members
    prefix = f"{folder.strip('/')}/"
    inner = (member for member in members if member.name.startswith(prefix))
    return (member._replace(name=member.name.removeprefix(prefix)) for member in inner)


def _in_place(members: Iterator[TarMember], place: SplitFolder, into: Collector) -> Iterator[TarMember]:
    """The members in a split's folder, with names below it; those of other splits are other sources."""
    return _below(members, place, into) if place.folder else members


def _below(members: Iterator[TarMember], place: SplitFolder, into: Collector) -> Iterator[TarMember]:
    prefix, others = f"{place.folder}/", tuple(f"{folder}/" for folder in place.beside)
    for member in members:
        if member.name.startswith(prefix):
            yield member._replace(name=member.name.removeprefix(prefix))
        elif not member.name.startswith(others):
            into.leave_out(why_no_image(member.name) or "image outside the split's folder", member.name)


def _walk_nothing(tar: _OpenTar, into: Collector) -> None:
    for member in tar.members:
        into.leave_out(why_no_image(member.name) or "image", member.name)


def _walk_class_tars(tar: _OpenTar, classes: Classes, into: Collector) -> None:
    known = set(classes) if isinstance(classes, tuple) else set[str]()
    inner: dict[str, Survey] = {}
    for outer in tar.members:
        if is_hidden(outer.name) or suffix_of(outer.name) != "tar":
            into.leave_out(why_no_image(outer.name) or "image beside class tars", outer.name)
        elif outer.fault:
            into.refuse(outer.name, outer.fault)
        else:
            name = stem(outer.name)
            into.expect(name)
            if name in inner:
                raise UserError(f"{tar.context}: holds two tars called {name}; the tars' names are the classes")
            inner[name] = survey = Survey()
            tar.file.seek(outer.offset)
            context = f"{tar.context}, {outer.name}"
            for member in survey.watch(members(tar.file, context, outer.offset + outer.size)):
                _take(member, name, f"{name}/{member.name}", tar.number, into)
            tops = {folder.partition("/")[0] for folder in survey.images if folder}
            if survey.form not in ("flat", "folder", "nothing") or len(tops) > 1:
                what = "several folders of images" if len(tops) > 1 else "samples or tars of its own"
                raise UserError(f"{context}: holds {what}, a class tar holds one class's images; unpack the outer tar")
    check_class_tars(inner, known, tar.context)


def _walk_labelled(tar: _OpenTar, labels: Labels, into: Collector) -> None:
    for member in tar.members:
        if reason := why_no_image(member.name):
            into.leave_out(reason, member.name)
        else:
            _take(member, labels.take(member.name), member.name, tar.number, into)


def _walk_class_tar(tar: _OpenTar, into: Collector) -> None:
    """A class tar by itself: its class is its name."""
    name = stem(tar.context)
    into.expect(name)
    for member in tar.members:
        _take(member, name, f"{name}/{member.name}", tar.number, into)


def _walk_folder(tar: _OpenTar, into: Collector) -> None:
    """An image folder: the first folder is the class."""
    for member in tar.members:
        class_name, slash, _ = member.name.partition("/")
        if slash:
            _take(member, class_name, member.name, tar.number, into)
        else:
            into.leave_out(why_no_image(member.name) or "image outside the class folders", member.name)


def _walk_samples(tar: _OpenTar, check: LabelCheck, into: Collector) -> None:
    path = f"{tar.context.rpartition('/')[2]}/{f'{tar.folder}/' if tar.folder else ''}"
    for key, group in groupby(tar.members, key=lambda member: _key(member.name)):
        sample: dict[str, TarMember] = {}
        for member in group:
            if is_hidden(member.name):
                into.leave_out("hidden", member.name)
            elif sample.setdefault(_extension(member.name), member) is not member:
                raise UserError(f"{tar.context}: holds {member.name} twice; remove one")
        if sample:
            _take_sample(sample, path, key, tar, check, into)


def _take_sample(
    sample: dict[str, TarMember], path: str, key: str, tar: _OpenTar, check: LabelCheck, into: Collector
) -> None:
    """Take a sample's image and class; of several images the one whose suffix has no dot."""
    label = sample.pop("cls", None)
    images = [one for extension, one in sample.items() if extension.rpartition(".")[2] in IMAGE_SUFFIXES]
    plain = [one for one in images if "." not in _extension(one.name)] or images
    image = plain[0] if len(plain) == 1 else None
    for member in sample.values():
        if member in images and image is not None and member is not image:
            into.leave_out("another image of a sample", member.name)
        elif not images and label is None:
            into.leave_out("no sample", member.name)
    if len(plain) > 1:
        into.refuse(f"{path}{key}", f"has several images ({', '.join(_extension(one.name) for one in plain)})")
    elif image is None or label is None:
        if image or label:
            into.refuse(f"{path}{key}", "has no image" if image is None else "has no .cls")
    elif image.fault or label.fault:
        into.refuse(f"{path}{image.name}", image.fault or label.fault)
    else:
        text = _label(label, tar, check)
        into.add(text, f"{path}{image.name}", file=tar.number, offset=image.offset, size=image.size)


def _label(label: TarMember, tar: _OpenTar, check: LabelCheck) -> str:
    tar.file.seek(label.offset)
    data = tar.file.read(min(label.size, LONGEST_LABEL + 1))
    try:
        text = label_text(data)
        check(text)
    except ValueError as error:
        shown = ascii(data[:40].decode("utf-8", "backslashreplace"))
        raise UserError(
            f"{tar.context}: {label.name} says {shown}, which {error}; write a class's index or its name"
        ) from None
    return text


def _take(member: TarMember, class_name: str, name: str, number: int, into: Collector) -> None:
    if reason := why_no_image(member.name):
        into.leave_out(reason, name)
    elif member.fault:
        into.refuse(name, member.fault)
    else:
        into.add(class_name, name, file=number, offset=member.offset, size=member.size)


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()
