"""Decode: an image file becomes uint8 RGB, of which the rows below the crops are left out where that saves work.

A JPEG goes through libjpeg-turbo by simplejpeg, whose pixels are Pillow's; all else, CMYK too, through Pillow. The rows
of a JPEG are coded from the top, and no binding of libjpeg-turbo stops early, so the height in the header is lowered:
libjpeg then decodes that many rows as it would those of the full image, and skips the rest. Rejected: libvips,
which reads line by line but takes twice as long (docs/replay.md).
"""

import contextlib
from typing import NamedTuple

import numpy as np
import PIL
import simplejpeg

from stages.replay.pixels import open_image, to_rgb

DECODERS = {"pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__}
"""Versions of the libraries that decode."""
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
"""Markers between those of frames that are none: tables, and what is reserved."""
_SEQUENTIAL, _SCAN = (0xC0, 0xC1), 0xDA
_MOST_PIXELS = 1 << 30
_BLOCK = 8


def decode(data: bytes, rows: int | None = None) -> np.ndarray:
    """Decode an image file, EXIF orientation not applied.

    Args:
        data: the file.
        rows: how many rows from the top are wanted; None = all.

    Returns:
        uint8 RGB of shape (height, width, 3), C-contiguous. Where `rows` are given there may be fewer than the image
        has, never fewer than requested; their pixels are those of the full image.

    Raises:
        ValueError: naming the cause, if the data is not a complete image.
    """
    if frame := _plain_jpeg(data):
        with contextlib.suppress(ValueError):
            return _decoded_jpeg(data, frame, rows)
    try:
        with open_image(data) as opened:
            return np.array(to_rgb(opened))
    except Exception as error:  # decoders raise whatever they meet
        raise ValueError(f"not a readable image ({' '.join(str(error).split())})") from None


class _JpegHeader(NamedTuple):
    """What a JPEG's headers say.

    Attributes:
        height_at: place of the two bytes of the height.
        height: in pixels.
        unit: rows of pixels that are coded together; 0 = the image's rows are not coded one after the other.
    """

    height_at: int
    height: int
    unit: int


def _decoded_jpeg(data: bytes, frame: _JpegHeader, rows: int | None) -> np.ndarray:
    """The image's first rows; the last unit that is decoded is not whole, since upsampling looks a row ahead."""
    wanted = frame.height if rows is None or not frame.unit else -(-rows // frame.unit) * frame.unit
    if wanted + frame.unit >= frame.height:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=False))
    lowered = bytearray(data)
    lowered[frame.height_at : frame.height_at + 2] = (wanted + frame.unit).to_bytes(2)
    return np.asarray(simplejpeg.decode_jpeg(lowered, "RGB", strict=False)[:wanted])


def _plain_jpeg(data: bytes) -> _JpegHeader | None:
    """The headers of a JPEG of one or three components, not CMYK, that ends where a JPEG ends."""
    if data[:3] != b"\xff\xd8\xff" or data[-2:] != b"\xff\xd9":
        return None
    at, frame = 2, 0
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _SCAN:
            return _frame(data, frame, at) if frame else None
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            frame = at
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def _frame(data: bytes, at: int, scan: int) -> _JpegHeader | None:
    """The fields of a frame's header, and of the first scan's, with their offsets."""
    height, width, components = (
        int.from_bytes(data[at + 5 : at + 7]),
        int.from_bytes(data[at + 7 : at + 9]),
        data[at + 9],
    )
    if components not in (1, 3) or not 0 < height * width <= _MOST_PIXELS:
        return None
    in_order = data[at + 1] in _SEQUENTIAL and data[scan + 4] == components
    down = max(factors & 15 for factors in data[at + 11 : at + 10 + 3 * components : 3])
    return _JpegHeader(at + 5, height, _BLOCK * down if in_order else 0)
