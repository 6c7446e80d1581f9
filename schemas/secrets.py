"""Secrets in URIs: `s3://key:secret@bucket?option=value` is for pyarrow alone, not for people, logs or stored files."""

import re

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s\"'<>\[\]]+)")


def hide_secrets(text: str) -> str:
    """The text with every URI in it cut down to scheme, host and path."""
    return _URI.sub(lambda found: found[1] + _bare(found[2]), text)


def _bare(rest: str) -> str:
    """What follows `://` without the user's part before the last @ of the host, and without options."""
    rest, mark, options = rest.partition("?")
    tail = options[len(options.rstrip(").,;:")) :] if mark else ""  # the sentence's, not the URI's
    head, at, after = rest.rpartition("@")
    return (after if at and _is_user(head) else rest) + tail


def _is_user(head: str) -> bool:
    """Whether what stands before an @ is a name or key: secrets may hold slashes, and a path rarely a colon."""
    return ":" in head or "/" not in head
