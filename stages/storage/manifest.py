"""Manifests of any length: their parts are read one after the other, and not all at once as objects.

A million parts, a thousand million images, are 290 MB of JSON and 1.7 GB of objects; what a reader of images needs of
all of them at once is how many rows each has. The rest is in the parts' receipts, which are read when their turn comes.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

from stages.storage.commit import MANIFEST, read_manifest
from stages.storage.store import Store

_OPENING = '"parts":['
"""As `schemas.receipts.canonical_json` spells it; within a string the quotes would be escaped."""
_CHUNK = 1 << 20


def open_manifest(store: Store) -> tuple[dict[str, Any], tuple[int, ...]] | None:
    """A stage's manifest without its parts, and the rows of each of these; None where it is not written yet.

    Raises:
        UserError: if it is damaged.
    """
    try:
        stream = store.stream(MANIFEST)
    except FileNotFoundError:
        return None
    with stream, io.TextIOWrapper(stream, encoding="utf-8") as text:
        reading, seen = _Reading(text), dict[int, int]()
        try:
            rows = tuple(seen.setdefault(part["rows"], part["rows"]) for part in reading.parts())  # few objects
            return json.loads(reading.others), rows
        except ValueError:  # damaged, which is said then, or spelt by another's hand
            manifest = read_manifest(store) or {}
            return manifest, tuple(part["rows"] for part in manifest.pop("parts"))


class _Reading:
    """Walks through a manifest's text; `others` is what is not of its parts."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._left = text, ""
        self.others = ""

    def parts(self) -> Iterator[dict[str, Any]]:
        """One part after the other; raises ValueError where the text is damaged."""
        while _OPENING not in self._left:
            self._more()
        before, _, self._left = self._left.partition(_OPENING)
        decoder, at = json.JSONDecoder(), 0
        while True:
            while self._left[at : at + 1] in ("", ","):
                at += 1
                if at > len(self._left):
                    self._left, at = "", 0
                    self._more()
            if self._left[at] == "]":
                break
            try:
                part, at = decoder.raw_decode(self._left, at)
            except ValueError:  # it goes on behind what is read
                self._left, at = self._left[at:], 0
                self._more()
                continue
            yield part
        self.others = before + _OPENING + self._left[at:] + self._text.read()

    def _more(self) -> None:
        more = self._text.read(_CHUNK)
        if not more:
            raise ValueError("it ends in the middle")
        self._left += more
