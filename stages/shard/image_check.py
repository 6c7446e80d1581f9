"""Check that an image can be decoded, before a teacher or the tenth epoch meets it.

Decoding is the check. For the usual JPEG, baseline in one scan, there is a cheaper one with the same verdict: libjpeg
only ever warns of damage inside the coded pixels, and fails for what its headers and tables say, or because the file
runs out. So one pixel is decoded by the image's own tables, and its coded pixels are walked to the mark of their end.
Where anything else is found (no end, a second scan, a progressive image), the image is decoded in full.
"""

import re
import warnings

from PIL import Image, UnidentifiedImageError

from schemas.errors import last_line
from stages.replay.pixels import check_mode, open_image

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends coded pixels: not a stuffed 255, not a restart, not fill."""
_FRAMES, _TABLES, _COMMENT, _SCAN, _END = (0xC0, 0xC1), (0xC4, 0xDB, 0xDD), 0xFE, 0xDA, b"\xff\xd9"
_MODES = {1: "L", 3: "L", 4: "CMYK"}
_SIDE = (8).to_bytes(2)
_EIGHTH = 8
_SOME_PIXELS = bytes(4096) + _END
"""Coded pixels enough for a block of each component, whatever the tables: zeros are a code in all of them."""
_LARGEST_SIDE = 65_500
"""libjpeg's own limit in pixels."""


def check_image(data: bytes) -> tuple[int, int, str]:
    """Find out whether an image decodes to its last row; its height and width in pixels, and a suffix.

    EXIF orientation is not applied.

    Raises:
        ValueError: with the cause, if it cannot be decoded, or is a decompression bomb.
    """
    if not data:
        raise ValueError("is empty")
    if size := _plain_and_whole(data):
        return *size, ".jpeg"
    try:
        with _opened(data) as image:
            width, height = image.size
            check_mode(image)
            image.draft("RGB", (1, 1))  # a JPEG's every coefficient is still read, its pixels are not all made
            image.load()
            image.crop((0, 0, 1, 1)).convert("RGB")
            return height, width, f".{(image.format or '').lower()}"
    except UnidentifiedImageError:
        raise ValueError("is not an image") from None
    except Exception as error:  # decoders raise whatever they meet: IndexError, RuntimeError, MemoryError, …
        raise ValueError(last_line(error)) from None


def _opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings(action="ignore"):  # EXIF data that is broken is read by nobody
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return open_image(data)


def _plain_and_whole(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that is baseline in one scan, has sound tables and ends where its pixels do."""
    frame = tables = b""
    known, at = True, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        segment = data[at:end]
        if kind in _TABLES:
            tables += segment
        elif kind in _FRAMES and not frame:
            frame = segment
        elif kind == _SCAN:
            mark = _MARKER.search(data, end)
            whole = mark is not None and mark.group() == _END and _decodes(frame, tables, segment)
            return _size(data, frame, known) if whole else None
        elif 0xE0 <= kind <= 0xEF:
            known = known and _is_well_known(segment)
        elif kind != _COMMENT:
            return None
        at = end
    return None


def _decodes(frame: bytes, tables: bytes, scan: bytes) -> bool:
    """Whether libjpeg takes the headers of a baseline JPEG, whose only scan is this."""
    if len(frame) < 11 or frame[9] not in _MODES or frame[4] != 8 or scan[4:5] != frame[9:10]:
        return False
    across, down = ([factor >> 4 for factor in frame[11::3]], [factor & 15 for factor in frame[11::3]])
    if not all(factor and max(axis) % factor == 0 for axis in (across, down) for factor in axis):
        return False
    small = b"".join((b"\xff\xd8", tables, frame[:5], _SIDE, _SIDE, frame[9:], scan, _SOME_PIXELS))
    try:
        mode = _MODES[frame[9]]
        Image.frombytes(mode, (1, 1), small, "jpeg", mode, "", _EIGHTH, 0)
    except Exception:  # a full decode reports the fault
        return False
    return True


def _size(data: bytes, frame: bytes, known: bool) -> tuple[int, int] | None:
    """Height and width, where Pillow, too, makes sense of them and of all other headers."""
    height, width = int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])
    most = Image.MAX_IMAGE_PIXELS or float("inf")
    if data[:2] != b"\xff\xd8" or not (0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE):
        return None
    if height * width > most:  # a decompression bomb, as Pillow has it
        return None
    if not known:
        try:
            _opened(data).close()
        except Exception:  # a full decode reports the fault
            return None
    return height, width


def _is_well_known(segment: bytes) -> bool:
    """Whether this is a JFIF header or a colour profile, of which Pillow expects no more than is there."""
    jfif, profile = segment[1] == 0xE0 and len(segment) == 18, segment[1] == 0xE2 and len(segment) >= 18
    return (jfif and segment[4:9] == b"JFIF\0") or (profile and segment[4:16] == b"ICC_PROFILE\0")
