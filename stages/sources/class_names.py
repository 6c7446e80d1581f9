"""The meaning of a label: a class's index or its name; ambiguous labels are errors.

Numbers count as indices only where all labels of a source are numbers and no given name is one; a text that is neither
a plain index nor a likely name is refused, so that no label of a wrong kind becomes a class of its own. What
`source.classes` lists is a name, whatever it looks like.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Literal

NUMERIC: Literal["numeric"] = "numeric"
"""`source.classes`: the names are numbers, and their order is that of the numbers."""
Classes = tuple[str, ...] | Literal["numeric"] | None
"""Class names by index; None = the source's own in the order of sorted names."""

MOST_CLASSES = 65_535
LONGEST_LABEL = 200
_INDEX = re.compile(r"0|[1-9][0-9]*")
_NUMBERS = re.compile(r"(?i)[\d\s.,;:+\-_/]+|[+-]?(nan|inf(inity)?)|[+-]?0[xob][0-9a-f]+|[+-]?[\d.]+e[+-]?\d+")
_CODE = re.compile(r"""[bu]?["'].*["']|[\[{(<].*|[\w.]+\(.*\)|None|null|true|false|True|False""", re.DOTALL)


def label_text(data: bytes) -> str:
    """A label's bytes as text.

    Raises:
        ValueError: saying what they are, if not that.
    """
    if len(data) > LONGEST_LABEL:
        raise ValueError(f"is longer than {LONGEST_LABEL} bytes")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("begins with a byte order mark")
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None


class LabelCheck:
    """Checks the labels of a source; each text is looked at once.

    Args:
        classes: class names by index; what they list is a name, whatever it looks like.
    """

    def __init__(self, classes: Classes = None) -> None:
        self._good = set(classes) - {""} if isinstance(classes, tuple) else set[str]()

    def __call__(self, text: str) -> None:
        """Raise ValueError, saying what is wrong, if a text is neither a class's name nor its index."""
        if text not in self._good:
            _check(text)
            self._good.add(text)


def _check(text: str) -> None:
    if not text:
        raise ValueError("is empty")
    if len(text.encode("utf-8", "replace")) > LONGEST_LABEL:
        raise ValueError(f"is longer than {LONGEST_LABEL} bytes")
    if not text.isprintable():
        raise ValueError("holds control characters")
    if _INDEX.fullmatch(text):
        return
    if text.isdecimal() and text.isascii():
        raise ValueError(f"could be the index {int(text)} or a name; list it in source.classes, if it is one")
    if _NUMBERS.fullmatch(text):
        raise ValueError("is a number or several, and not an index such as 0 or 12")
    if _CODE.fullmatch(text):
        raise ValueError("is a value as a program prints it; list it in source.classes, if it is a name")


def is_index(text: str) -> bool:
    """Whether a text is an index as it is usually written."""
    return _INDEX.fullmatch(text) is not None


def are_indices(texts: Collection[str], names: Sequence[str] | None) -> bool:
    """Whether the labels of a source are indices; else they are names.

    Raises:
        ValueError: with an example, if they could be either, or are some of one kind and some of the other.
    """
    numbers = [text for text in texts if is_index(text)]
    if not numbers:
        return False
    place = {name: number for number, name in enumerate(names or ())}
    if all(text in place for text in texts):
        for text in numbers:
            if len(numbers) == len(texts) and int(text) < len(place) and place[text] != int(text):
                raise ValueError(f"class {text} could be the name of class {place[text]} or the index {text}")
        return False
    if len(numbers) < len(texts):
        other = next(text for text in texts if not is_index(text))
        raise ValueError(f"some classes are numbers and some are names, such as {numbers[0]} and {other}; use one")
    if mixed := [text for text in numbers if text in place and place[text] != int(text)]:
        raise ValueError(f"class {mixed[0]} could be the name of class {place[mixed[0]]} or the index {mixed[0]}")
    return True


def in_order(names: Collection[str], classes: Classes) -> tuple[str, ...]:
    """The source's own names in their order: sorted, or by number."""
    return tuple(sorted(names, key=lambda name: (int(name), name) if classes == NUMERIC else (0, name)))


def doubtful_order(names: Sequence[str]) -> str:
    """A warning, where names are numbers and their sorted order is another than that of the numbers."""
    if len(names) < 2 or not all(name.isascii() and name.isdecimal() for name in names):
        return ""
    by_number = sorted(names, key=lambda name: (int(name), name))
    if list(names) == by_number:
        return ""
    at = next(number for number, pair in enumerate(zip(names, by_number, strict=True)) if pair[0] != pair[1])
    return (
        f"class names are numbers and are sorted as text: class {at} is '{names[at]}', and would be '{by_number[at]}' "
        'in the order of the numbers; source.classes = "numeric" takes that order'
    )


def check_names(names: Sequence[str]) -> str:
    """A warning about class names that differ only in case, or "".

    Raises:
        ValueError: if a class has no name, a name holds control characters, or two cannot be told apart.
    """
    alike: dict[str, str] = {}
    other_case: dict[str, str] = {}
    warning = ""
    for number, name in enumerate(names):
        if not name:
            raise ValueError(f"class {number} has an empty name")
        if not name.isprintable():
            raise ValueError(f"the class name {name!a} holds control characters")
        normal = _normal(name)
        if alike.get(normal) == name:
            raise ValueError(f"two classes are called {name}")
        if (first := alike.setdefault(normal, name)) != name:
            raise ValueError(f"the class names {first!a} and {name!a} differ only in spaces or in their Unicode form")
        if (first := other_case.setdefault(normal.casefold(), name)) != name:
            warning = warning or f"the class names {first} and {name} differ only in case, and are two classes"
    return warning


def look_alike(name: str, names: Collection[str]) -> str:
    """The name that differs from the given one only in case, spaces or Unicode form, or ""."""
    wanted = _normal(name).casefold()
    return next((one for one in names if _normal(one).casefold() == wanted), "")


def _normal(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())


def same_words(name: str) -> str:
    """A name as people compare it: without case, underscores, and what follows a comma."""
    return " ".join(re.split(r"[\s_-]+", name.partition(",")[0].casefold().strip()))
