"""Open an image's bytes, and its pixels as RGB of 8 bits: the one way for checks, views, crops and re-encoding.

Only forms that photographs are kept in are opened. Pillow knows many more, one of which starts a program (EPS runs
Ghostscript, whatever the file is called). Grey of more than 8 bits is scaled, where its range is known: Pillow's own
conversion cuts it at 255, which makes it white.
"""

import io

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "PPM", "JPEG2000", "ICO")
"""As Pillow calls them; JPEG stands for MPO as well."""
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N")
_BITS_OF_TIFF = 258


def open_image(data: bytes) -> Image.Image:
    """Open an image file of one of `FORMATS`, whatever it is called.

    Raises:
        PIL.UnidentifiedImageError: if it is none of them.
    """
    return Image.open(io.BytesIO(data), formats=FORMATS)


def check_mode(image: Image.Image) -> None:
    """Raise ValueError if an image's pixels cannot be brought to 8 bits, since their white level is unknown."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ValueError(f"has {kind} pixels, of which nothing says what white is; convert it to 8 bits a channel")


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image's pixels as RGB of 8 bits a channel, EXIF orientation not applied.

    Raises:
        ValueError: if they cannot be brought to that.
    """
    check_mode(image)
    if image.mode in _WIDE or image.mode == "I":
        bits, values = getattr(image, "tag_v2", {}).get(_BITS_OF_TIFF, (16,))[0], np.asarray(image)
        shift = bits - 8 if values.max() > 255 else 0  # 8 bits in a wide form, else all but black
        image = Image.fromarray((values >> shift).astype(np.uint8))
    return image.convert("RGB")
