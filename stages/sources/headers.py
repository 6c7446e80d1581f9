"""The members of a tar by their headers alone: read by offset, and bounded by what is there.

For any header, each step goes forward, and nothing is read that is longer than a name can be. Names, lengths
and kinds are those that tarfile finds (USTAR, GNU, pax, V7). What follows a tar's end is another tar, which is read
as well, or an error: `cat one.tar two.tar` is a common way to join two. Rejected: tarfile, which on Python 3.11 goes in
a circle at a negative length (CVE-2025-8194), reads as much as a header requests and stops at the first end.
"""

import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from schemas.errors import UserError

BLOCK = 512
_EMPTY = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_LONGEST = 1 << 20
"""Bytes of a long name or of a pax header; those of real archives have hundreds."""
_MOST_IN_A_ROW = 16
"""Headers about one member; real archives have four at the most."""
_CHUNK = 1 << 16
_FILES, _LINKS, _FOLDER, _NO_DATA = b"0\x007", b"12", b"5", b"123456"
_SPARSE, _LONG_NAME, _LONG_LINK, _PAX, _GLOBAL = b"S", b"L", b"K", b"xX", b"g"


class TarMember(NamedTuple):
    """A file in a tar: its name, where its bytes are, and why it is never read, or ""."""

    name: str
    offset: int
    size: int
    fault: str


class _Damaged(Exception):
    """Why it is no complete tar."""


def compression(data: bytes) -> str:
    """By what a file that begins so was compressed, or ""."""
    return _COMPRESSED.get(data[:2], "")


def members(file: Any, context: str, end: int | None = None) -> Iterator[TarMember]:
    """The files of the tar that begins where `file` stands; folders are skipped.

    Args:
        file: open, seekable; whoever takes members may move it.
        context: the tar's name, for messages.
        end: the offset at which the tar's bytes end; None = where the file ends.

    Raises:
        UserError: if it is not a complete tar, is compressed, or reaches beyond `end`.
    """
    start = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(start)
    if kind := compression(file.read(2)):
        raise UserError(f"{context}: is compressed ({kind}) and cannot be read by offset; decompress it first")
    try:
        yield from _walk(file, start, length if end is None else min(end, length))
    except _Damaged as error:
        raise UserError(f"{context}: not a whole tar ({error}); copy or download it again") from None


def _walk(file: Any, at: int, end: int) -> Iterator[TarMember]:
    about: dict[str, str] = {}  # what headers before a member's own say of it
    always: dict[str, str] = {}
    in_a_row = 0
    while True:
        header = _read(file, at, BLOCK, end)
        if header == _EMPTY:
            if in_a_row:
                raise _Damaged("ends in the middle")
            behind = _behind(file, at, end)
            if behind is None:
                return
            at, always = behind, {}
            continue
        kind, size = _checked(header)
        at += BLOCK
        if kind in _PAX or kind in (_GLOBAL, _LONG_NAME, _LONG_LINK):
            in_a_row += 1
            if size > _LONGEST or in_a_row > _MOST_IN_A_ROW:
                raise _Damaged("has headers that no archive has")
            said = _said(kind, _read(file, at, size, end))
            always, about = (always | said, about) if kind == _GLOBAL else (always, about | said)
            at += _padded(size)
            continue
        about, in_a_row = always | about, 0
        size = _size(about.get("size"), size)
        sparse = kind == _SPARSE or any(key.startswith("GNU.sparse") for key in about)
        at = _behind_maps(file, header, at, end) if kind == _SPARSE else at
        name = about.get("path") or _name(header)
        is_folder = kind == _FOLDER or (kind == b"\0" and name.endswith("/"))
        stored = size if kind not in _NO_DATA else 0
        if at + stored > end:
            raise _Damaged("reaches beyond its end")
        if not is_folder:
            yield TarMember(name.removeprefix("./"), at, size, _fault(name, kind, sparse))
        at += _padded(stored)
        about = {}


def _read(file: Any, at: int, count: int, end: int) -> bytes:
    file.seek(at)
    data: bytes = file.read(count) if at + count <= end else b""
    if len(data) < count:
        raise _Damaged("ends in the middle")
    return data


def _checked(header: bytes) -> tuple[bytes, int]:
    """Kind and length of what a header is of, if its checksum is right."""
    if sum(header) - sum(header[148:156]) + 256 != _number(header[148:156]) and not _signed_sum_is_right(header):
        raise _Damaged("is damaged or ends in the middle")
    return header[156:157], _size(None, _number(header[124:136]))


def _signed_sum_is_right(header: bytes) -> bool:
    """Some old writers summed the bytes as signed ones."""
    signed = sum(byte - 256 * (byte > 127) for byte in header[:148] + header[156:])
    return signed + 256 == _number(header[148:156])


def _number(field: bytes) -> int:
    """A number in octal digits, or in base 256 behind a mark; negative ones are somebody's to refuse."""
    if field[0] in (0o200, 0o377):
        return int.from_bytes(field[1:]) - (256 ** (len(field) - 1) if field[0] == 0o377 else 0)
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise _Damaged("is damaged or ends in the middle") from None


def _size(said: str | None, size: int) -> int:
    """The length that a pax header gives in place of the header's own."""
    if said is not None:
        if not (said.isascii() and said.isdecimal() and len(said) < 20):
            raise _Damaged("gives a length that is none")
        size = int(said)
    if size < 0:
        raise _Damaged("gives a length that is none")
    return size


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return _text(name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _said(kind: bytes, data: bytes) -> dict[str, str]:
    """The content of a header before a member's own: its name, or the records of a pax header."""
    if kind == _LONG_NAME:
        return {"path": _text(data.partition(b"\0")[0])}
    found: dict[str, str] = {}
    at = 0
    while kind != _LONG_LINK and at < len(data) and data[at]:
        count, space, _ = data[at : at + 24].partition(b" ")
        end = at + int(count) if space and count.isdigit() else 0
        key, equals, value = data[at + len(count) + 1 : end - 1].partition(b"=")
        if not at < end <= len(data) or not equals or data[end - 1] != ord("\n"):
            raise _Damaged("has a damaged pax header")
        name = _text(key)
        if name in ("path", "size", "GNU.sparse.name") or name.startswith("GNU.sparse"):
            found["path" if name == "GNU.sparse.name" else name] = _text(value)
        at = end
    return found


def _behind_maps(file: Any, header: bytes, at: int, end: int) -> int:
    """The offset of a GNU sparse file's bytes: after the blocks that list its stored parts."""
    more = header[482]
    while more:
        more = _read(file, at, BLOCK, end)[504]
        at += BLOCK
    return at


def _behind(file: Any, at: int, end: int) -> int | None:
    """The offset of another tar after the zeros that end one; None without one."""
    start = at
    while at < end:
        chunk = _read(file, at, min(_CHUNK, end - at), end)
        rest = chunk.lstrip(b"\0")
        if rest:
            found = at + len(chunk) - len(rest)
            found -= (found - start) % BLOCK
            try:
                _checked(_read(file, found, BLOCK, end))
            except _Damaged:
                raise _Damaged(f"{end - found} bytes behind its end are no tar") from None
            return found
        at += len(chunk)
    return None


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _fault(name: str, kind: bytes, sparse: bool) -> str:
    if kind in _LINKS:
        return "is a link"
    if sparse or kind not in _FILES:
        return "is not a plain file"
    if ".." in name or name.startswith("/"):
        path = PurePosixPath(name)
        return "has a path that leaves the archive" if ".." in path.parts or path.is_absolute() else ""
    return ""
