"""Receipts and manifests: the small files that say what is done and prove it.

A part is done when its receipt is there, and not before: a tar or a Parquet file that opens proves
nothing, since object stores commit truncated files on errors. A manifest is written last, so its
existence means that every part it lists has a receipt. Neither holds a time or a host name: two attempts at one
part write the same bytes.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import MismatchError, UserError
from schemas.secrets import without_secrets

_SHA256 = re.compile("[0-9a-f]{64}")


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8, a newline at the end."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def fingerprint(value: Any) -> str:
    """Hex sha256 of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def read_json(data: bytes, context: str) -> dict[str, Any]:
    """Parse a stored JSON object; `context` names the file in the error.

    Raises:
        UserError: if the bytes are not a complete JSON object.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UserError(f"{context}: not JSON ({error}); restore it, or delete it and run its stage again") from None
    if not isinstance(value, dict):
        raise UserError(f"{context}: not a JSON object; restore it, or delete it and run its stage again")
    return value


@dataclass(frozen=True, kw_only=True)
class PartOutput:
    """What a stage returns for one part: files (name below the stage's folder → content), rows, counts.

    `sha256` has the hex sums of files that were hashed as they were written.
    """

    files: dict[str, bytes | Path]
    rows: int
    facts: dict[str, Any]
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of a part: its path below the stage's folder, its bytes and their sha256 (hex)."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if type(self.path) is not str or not self.path or not {"", ".", ".."}.isdisjoint(self.path.split("/")):
            raise ValueError(f"path = {truncate_json(self.path)}: must be a path below the stage's folder")
        if type(self.bytes) is not int or self.bytes < 0:
            raise ValueError(f"bytes = {truncate_json(self.bytes)}: must be a whole number of at least 0")
        if type(self.sha256) is not str or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 = {truncate_json(self.sha256)}: must be 64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Says that a part is done.

    `made_by` is the fingerprint of everything that determined the content; `facts` are counts that
    the stage adds up into its manifest.
    """

    part: str
    files: tuple[StoredFile, ...]
    rows: int
    made_by: str
    facts: dict[str, Any]

    def file(self, suffix: str) -> StoredFile:
        """The part's file whose name ends so."""
        return next(file for file in self.files if file.path.endswith(suffix))

    def to_json(self) -> bytes:
        """Canonical bytes, the same on every machine."""
        return canonical_json(vars(self) | {"files": [vars(file) for file in self.files]})

    @classmethod
    def from_json(cls, data: bytes, context: str) -> "Receipt":
        """Parse what `to_json` wrote; `context` names the file in the error.

        Raises:
            UserError: if the bytes are not a complete receipt.
        """
        try:
            fields = json.loads(data)
            files = tuple(StoredFile(**one) for one in fields.pop("files"))
            receipt = cls(files=files, **fields)
            if receipt.to_json() != data:
                raise ValueError("not the bytes that were written")
            return receipt
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{context}: not a receipt ({error}); delete it and run the same command again") from None


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Name every leaf in which two JSON values differ, as `name: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            child = f"{name}.{key}" if name else key
            found += differences(old.get(key), new.get(key), child)
        return found
    if json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True):
        return []
    return [f"{name}: {truncate_json(old)} -> {truncate_json(new)}"]


_OF_THIS_VERSION = {"recipe.rotation": "an earlier version, which mixed the fill into the rim of rotated views"}
"""Parts of an identity that no run file can restore, and whose they were."""


def require_unchanged(context: str, old: Any, new: Any, hint: str) -> None:
    """Compare what made the existing parts with what would make new ones.

    Raises:
        MismatchError: naming every difference and the fix.
    """
    found = differences(old, new)
    for key, cause in _OF_THIS_VERSION.items():
        if any(one.startswith(f"{key}: ") for one in found):
            raise MismatchError(
                f"{context} was made by {cause} ({'; '.join(found)}); make it again under another name "
                "(labels.name, train.name)"
            )
    if found:
        raise MismatchError(f"{context} was made differently ({'; '.join(found)}); {hint}")


def truncate_json(value: Any) -> str:
    """A value as JSON on one line of at most 60 characters, for messages; secrets are hidden before it is cut."""
    text = json.dumps(without_secrets(value), ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
