"""As much of MATLAB's MAT-file version 5 as the devkit's `meta.mat` needs: an array of structs of numbers and words.

Written from MathWorks' description of the format ("MAT-File Format", level 5). Rejected: scipy, 100 MB for one file.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q", 16: "B", 17: "H"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_HEADER = 128
_LARGEST = 64 << 20
"""Bytes, unpacked; the devkit's has one million."""


def read_structs(data: bytes, name: str) -> list[dict[str, Any]]:
    """The structs of a variable, with single numbers and strings as such; anything else in them is a list.

    Raises:
        ValueError: if this is no such file or the variable is not in it.
    """
    if data[126:128] != b"IM":
        raise ValueError("not a little-endian MAT-file of version 5")
    try:
        for kind, content in _elements(data[_HEADER:]):
            if kind == _COMPRESSED:
                kind, content = next(_elements(_unpacked(content)))
            if kind == _MATRIX:
                found, value = _matrix(content)
                if found == name and isinstance(value, list):
                    return value
    except (struct.error, zlib.error, StopIteration, IndexError, RecursionError) as error:
        raise ValueError(f"a damaged MAT-file: {error}") from None
    raise ValueError(f"no variable {name}")


def _unpacked(content: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(content, _LARGEST)
    if not unpacking.eof:
        raise ValueError("a damaged MAT-file: cut off, or far longer than the devkit's")
    return data


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of one element after the other; small ones share eight bytes with their tag."""
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind >> 16:
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += 8
        else:
            yield kind, data[at + 8 : at + 8 + length]
            at += 8 + length + (0 if kind == _COMPRESSED else -length % 8)


def _matrix(data: bytes) -> tuple[str, Any]:
    """Name and value of an array."""
    parts = _elements(data)
    array_class = next(parts)[1][0]
    next(parts)  # its dimensions
    name = next(parts)[1].decode("latin-1")
    if array_class == _STRUCT:
        width = struct.unpack("<i", next(parts)[1])[0]
        names = next(parts)[1]
        fields = [names[at : at + width].split(b"\0")[0].decode() for at in range(0, len(names), width)]
        values = [_matrix(content)[1] if content else [] for _, content in parts]
        return name, [
            dict(zip(fields, values[at : at + len(fields)], strict=True)) for at in range(0, len(values), len(fields))
        ]
    if array_class == _CELL:
        return name, [_matrix(content)[1] for _, content in parts]
    kind, content = next(parts)
    numbers = [one[0] for one in struct.iter_unpack(f"<{_NUMBERS[kind]}", content)]
    if array_class == _CHAR:
        return name, "".join(map(chr, numbers))
    return name, int(numbers[0]) if len(numbers) == 1 else numbers
