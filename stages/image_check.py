"""Check that an image can be decoded, before a teacher or the tenth epoch meets it.

Decoding is the check. For the usual JPEG, baseline in one scan, there is a cheaper one with the same verdict: libjpeg
only ever warns of damage inside the coded pixels, and fails for what its headers and tables say, or because the file
runs out. So headers and first pixels are decoded, and the coded pixels are walked to the mark of their end. Where the
walk finds anything else (no end, a second scan, a progressive image), the image is decoded in full.
"""

import io
import re
import warnings

from PIL import Image, UnidentifiedImageError

_FIRST_BYTES = 256
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends coded pixels: not a stuffed 255, not a restart, not fill."""
_BASELINE, _TABLES, _COMMENT = (0xC0, 0xC1), (0xC4, 0xDB, 0xDD), (0xFE,)
_SCAN, _END = 0xDA, b"\xff\xd9"


def check_image(data: bytes) -> tuple[int, int, str]:
    """Find out whether an image decodes to its last row; its height and width in pixels, and a suffix.

    EXIF orientation is not applied.

    Raises:
        ValueError: with the cause, if it cannot be decoded, or is a decompression bomb.
    """
    if not data:
        raise ValueError("is empty")
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(data))
        with image:
            width, height = image.size
            kind = f".{(image.format or '').lower()}"
            if kind != ".jpeg" or not _is_plain_and_whole(data):
                image.draft("RGB", (1, 1))  # a JPEG's every coefficient is still read, its pixels are not all made
                image.load()
    except UnidentifiedImageError:
        raise ValueError("is not an image") from None
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(str(error)) from None
    return height, width, kind


def _is_plain_and_whole(data: bytes) -> bool:
    """Whether a JPEG is baseline in one scan, begins as one that decodes and ends where its coded pixels do."""
    start = _coded_pixels(data)
    end = _MARKER.search(data, start) if start else None
    if end is None or end.group() != _END:
        return False
    with Image.open(io.BytesIO(data[: start + _FIRST_BYTES] + _END)) as head:
        head.draft("RGB", (1, 1))
        head.load()  # raises what decoding in full would
    return True


def _coded_pixels(data: bytes) -> int:
    """Where the coded pixels of a baseline JPEG's only scan begin; 0 if it is another, or broken."""
    at, components = 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if kind in _BASELINE and length > 7:
            components = data[at + 9] if at + 9 < len(data) else 0
        elif kind == _SCAN:
            return at + 2 + length if components and data[at + 4 : at + 5] == bytes([components]) else 0
        elif not (kind in _TABLES or kind in _COMMENT or 0xE0 <= kind <= 0xEF):
            return 0
        at += 2 + length
    return 0
