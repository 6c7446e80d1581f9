"""Image files of many kinds."""

import io

import numpy as np
from PIL import Image


def picture(size: tuple[int, int] = (90, 70), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def broken_exif() -> bytes:
    plain = saved(picture())
    block = b"Exif\0\0MM\0*" + b"\xff" * 20
    return plain[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2) + block + plain[2:]


def rotated() -> bytes:
    about = Image.Exif()
    about[0x0112] = 6
    return saved(picture(), exif=about)


WHOLE = {
    "baseline": (lambda: saved(picture()), ".jpeg"),
    "progressive": (lambda: saved(picture(), progressive=True), ".jpeg"),
    "grey": (lambda: saved(picture(mode="L")), ".jpeg"),
    "CMYK": (lambda: saved(picture(mode="CMYK")), ".jpeg"),
    "PNG": (lambda: saved(picture(), "PNG"), ".png"),
    "PNG with a palette": (lambda: saved(picture(mode="P"), "PNG"), ".png"),
    "rotated by EXIF": (rotated, ".jpeg"),
    "broken EXIF": (broken_exif, ".jpeg"),
    "rubbish behind its end": (lambda: saved(picture()) + b"rubbish", ".jpeg"),
    "with restarts": (lambda: saved(picture(), restart_marker_blocks=2), ".jpeg"),
}
