"""Apply: an image and a decision become a uint8 view, the same on every call, thread count and worker.

A Renderer keeps every buffer it needs, since a fresh 150 KB result costs more in page faults than most
operations do in arithmetic. Rejected: Pillow for the pixels (six times the time), and folding two
geometric operations into one warp, which skips the blur and the border that timm's students saw.
"""

import io
from functools import cache

import cv2
import numpy as np
import torch
from PIL import Image

from schemas.recipe import IMAGENET_MEAN, IMAGENET_STD
from stages.replay.decide import Box, DecidedView, Erase
from stages.replay.draws import Draws, Purpose
from stages.replay.ops import OPS, Scratch

_IMDECODE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode(data: bytes) -> np.ndarray:
    """Decode an image file to uint8 RGB of shape (height, width, 3), EXIF orientation not applied.

    A plain YCbCr JPEG goes through OpenCV, whose pixels are Pillow's; all else through Pillow.

    Raises:
        ValueError: naming the cause, if the data is not a whole image.
    """
    if _is_plain_jpeg(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _IMDECODE)
        if image is not None:
            return np.asarray(image)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return np.array(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({error})") from None


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether this is a JPEG of three components that ends where a JPEG ends."""
    if data[:3] != b"\xff\xd8\xff" or data[-2:] != b"\xff\xd9":
        return False
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return data[at + 9] == 3
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


class Renderer:
    """Renders views of one size; one a process, not thread-safe."""

    def __init__(self, image_size: int) -> None:
        shape = (image_size, image_size, 3)
        self._size = image_size
        self._front, self._back = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        self._scratch = Scratch(image_size)

    def render(self, image: np.ndarray, decided: DecidedView, out: np.ndarray) -> None:
        """Write the view of an image into `out`.

        Args:
            image: uint8 RGB, (height, width, 3), as `decode` returns it.
            decided: what `Decider.view` decided for that height and width.
            out: uint8, (image_size, image_size, 3), C-contiguous.
        """
        self._crop(image, decided.crop, self._front)
        if decided.flip:
            self._front, self._back = self._back, self._front
            cv2.flip(self._back, 1, dst=self._front)
        for op in decided.ops:
            self._front, self._back = self._back, self._front
            OPS[op.name](self._back, self._front, op.level, self._scratch)
        np.copyto(out, self._front)
        if decided.erase:
            _erase(out, decided.erase)

    def _crop(self, image: np.ndarray, box: Box, out: np.ndarray) -> None:
        """Crop and resize, bicubic with antialiasing, as Pillow does."""
        crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
        source = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None]
        target = torch.from_numpy(out).permute(2, 0, 1)[None]
        torch.ops.aten._upsample_bicubic2d_aa.out(source, [self._size, self._size], False, out=target)


def _erase(view: np.ndarray, erase: Erase) -> None:
    """Fill a box with noise or the mean colour, as after normalisation but rounded to levels."""
    box = erase.box
    patch = view[box.top : box.top + box.height, box.left : box.left + box.width]
    if erase.noise is None:
        patch[:] = np.rint(255 * np.array(IMAGENET_MEAN)).astype(np.uint8)
        return
    seed, shard, row, index = erase.noise
    count = box.height * box.width
    words = Draws(seed, Purpose.NOISE).at(shard, row, index).words((3 * count + 3) // 4)
    codes = words.astype("<u8", copy=False).view("<u2")[: 3 * count].reshape(3, box.height, box.width)
    for channel, table in enumerate(_noise_tables()):
        patch[..., channel] = np.take(table, codes[channel])


@cache
def _noise_tables() -> np.ndarray:
    """uint8 (3, 65536): a level for each 16-bit code, so that uniform codes give clipped normal levels."""
    quantiles = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    normal = torch.special.ndtri(quantiles).numpy()
    levels = [255 * (mean + std * normal) for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
