"""Secrets in URIs: `s3://key:secret@bucket?option=value` is for pyarrow alone, not for people, logs or stored files.

A secret may hold any character, percent-encoded or not, and a path library folds `//` into `/`: what stands before the
last `@` counts as the user's part in all these spellings.
"""

import re
from typing import Any

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+:/+"
_IN_TEXT = re.compile(rf"({_SCHEME})([^\s\"']+)")
_ALONE = re.compile(rf"({_SCHEME})(.*)", re.DOTALL)
_USER = re.compile(r"[^:/?#]*(:.*)?", re.DOTALL)
"""A key, or a key and its secret; a bucket's folder holds a slash first."""
_ENCODED = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
"""What the user's part of a URI may be spelt with (RFC 3986, 3.2.1)."""


def hide_secrets(text: str) -> str:
    """The text with every URI in it reduced to scheme, host and path."""
    return _IN_TEXT.sub(lambda found: found[1] + _bare(found[2]), text)


def bare_uri(value: str) -> str:
    """A single URI reduced to scheme, host and path, whatever its secret holds; anything else as `hide_secrets`."""
    found = _ALONE.fullmatch(value)
    return found[1] + _bare(found[2]) if found else hide_secrets(value)


def without_secrets(value: Any) -> Any:
    """A value of a run file in which every string is a `bare_uri`."""
    if isinstance(value, str):
        return bare_uri(value)
    if isinstance(value, dict):
        return {key: without_secrets(one) for key, one in value.items()}
    return type(value)(map(without_secrets, value)) if isinstance(value, list | tuple) else value


def is_uri(value: str) -> bool:
    """Whether a value is a URI, also one whose slashes a path library has folded."""
    return _ALONE.fullmatch(value) is not None


def is_encoded(uri: str) -> bool:
    """Whether the user's part of a URI is spelt as URIs have to be; true where there is none."""
    found = _ALONE.fullmatch(uri)
    return found is None or _ENCODED.fullmatch(_split_user(found[2])[0]) is not None


def _bare(rest: str) -> str:
    """What follows `://` without the user's part and without options."""
    tail = rest[len(rest.rstrip(").,;:]>")) :]  # the sentence's, not the URI's
    path, mark, _ = _split_user(rest)[1].partition("?")
    return path + (tail if mark else "")


def _split_user(rest: str) -> tuple[str, str]:
    """The user's part, "" where there is none, and what follows it."""
    head, at, after = rest.rpartition("@")
    return (head, after) if at and _USER.fullmatch(head) else ("", rest)
