"""What names say: which are hidden, which are images, which split a folder or a file is of. One rule for every form."""

import re
from collections.abc import Iterable

_JPEG, _PNM = {"jpg", "jpeg", "jpe", "jfif", "mpo"}, {"ppm", "pgm", "pbm", "pnm"}
IMAGE_SUFFIXES = frozenset({"png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jp2", "ico"} | _JPEG | _PNM)
"""Suffixes of files that may be images, in lower case; whether one is an image, its bytes say."""

GROUPS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What splits are called, in lower case, and which split that is."""
_WANTED = {"train": ("train",), "val": ("val", "test")}
"""Of which group a split of the run file is made; the first that is there."""

_HIDDEN = re.compile(
    r"(?:^|/)(?:\.(?!\.?(?:/|$))|(?:@eaDir|__MACOSX|#recycle|\$RECYCLE\.BIN|lost\+found|Thumbs\.db|desktop\.ini)(?:/|$))"
)
_WORDS = re.compile(rf"(?<![a-z])({'|'.join(sorted(GROUPS, key=len, reverse=True))})(?:_?set)?(?![a-z])")
_SPLIT_FILE = re.compile(
    rf"(?:^|.*[-._ 0-9])({'|'.join(GROUPS)})"
    r"(?:[-._ ]*(?:[0-9]+|of|part|shards?|images?|data|set|snappy|zstd|gz|c[0-9]+|[0-9a-f]{8,}))*[-._ ]*",
    re.IGNORECASE,
)


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder above it, is one that systems keep for themselves."""
    return _HIDDEN.search(path) is not None


def suffix_of(name: str) -> str:
    """What follows the last dot of a file's name, in lower case, without the dot."""
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base else ""


def why_no_image(name: str) -> str:
    """Why a file is left out by its name alone, or "" for what may be an image."""
    if is_hidden(name):
        return "hidden"
    suffix = suffix_of(name)
    return "" if suffix in IMAGE_SUFFIXES else f"no image (.{suffix})" if suffix else "no image (no suffix)"


def group_of_file(path: str) -> str:
    """Which split a file is of by its name, `train-00000-of-00002.parquet`, or a folder above it; "" = unknown."""
    *folders, base = path.split("/")
    if match := _SPLIT_FILE.fullmatch(base.rpartition(".")[0]):
        return GROUPS[match[1].lower()]
    return next((GROUPS[one.lower()] for one in reversed(folders) if one.lower() in GROUPS), "")


def group_of_folder(name: str) -> str:
    """Which split a folder may be of by a word in its name, `seg_train` or `val2017`; "" = of none, or of several."""
    found = {GROUPS[word] for word in _WORDS.findall(name.lower())}
    return found.pop() if len(found) == 1 else ""


def wanted_group(groups: Iterable[str], split: str) -> str:
    """Of the groups that are there, the one that a split of the run file is made of, or ""."""
    there = set(groups)
    return next((group for group in _WANTED[split] if group in there), "")
