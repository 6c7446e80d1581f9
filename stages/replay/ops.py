"""Ops: RandAugment's and AutoAugment's operations on uint8 RGB, from one kept buffer into another.

Each follows Pillow's arithmetic, which the policies were learnt on: table operations to the level ±1,
geometry as bicubic with the ImageNet mean where there is no source. Rejected: Pillow itself, whose
warp alone takes as long as a whole view does here.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from schemas.recipe import IMAGENET_MEAN

FILL = tuple(round(255 * mean) for mean in IMAGENET_MEAN)


class Scratch:
    """Buffers that operations share, for views of one size."""

    def __init__(self, image_size: int) -> None:
        self.view = np.empty((image_size, image_size, 3), np.uint8)


Operation = Callable[[np.ndarray, np.ndarray, float, Scratch], None]


def _autocontrast(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    side = len(view)
    rows = view.reshape(side, side * 3)
    low = rows.min(axis=0).reshape(side, 3).min(axis=0).astype(np.float64)
    high = rows.max(axis=0).reshape(side, 3).max(axis=0).astype(np.float64)
    scale = np.where(high > low, 255.0 / np.maximum(high - low, 1.0), 1.0)
    offset = np.where(high > low, -low * scale, 0.0)
    levels = np.arange(256.0)[:, None] * scale + offset
    cv2.LUT(view, np.clip(levels, 0, 255).astype(np.uint8).reshape(1, 256, 3), dst=out)


def _equalize(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    tables = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        tables[0, :, channel] = _equalizing_table(cv2.calcHist([view], [channel], None, [256], [0, 256]).ravel())
    cv2.LUT(view, tables, dst=out)


def _equalizing_table(histogram: np.ndarray) -> np.ndarray:
    counts = histogram.astype(np.int64)
    used = np.flatnonzero(counts)
    step = int(counts.sum() - counts[used[-1]]) // 255
    if len(used) <= 1 or step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.concatenate(([0], np.cumsum(counts)[:-1]))
    return np.minimum((step // 2 + below) // step, 255).astype(np.uint8)


def _invert(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    cv2.bitwise_not(view, dst=out)


def _posterize(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    np.bitwise_and(view, np.uint8(256 - 2 ** (8 - int(level)) if level < 8 else 255), out=out)


def _solarize(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    table = np.arange(256)
    cv2.LUT(view, np.where(table < level, table, 255 - table).astype(np.uint8), dst=out)


def _solarize_add(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    table = np.arange(256)
    cv2.LUT(view, np.where(table < 128, np.minimum(table + int(level), 255), table).astype(np.uint8), dst=out)


def _towards(view: np.ndarray, out: np.ndarray, level: float, grey: int) -> None:
    """Blend with one grey level: grey + level * (value - grey), truncated and clipped."""
    table = grey + level * (np.arange(256.0) - grey)
    cv2.LUT(view, np.clip(table, 0, 255).astype(np.uint8), dst=out)


def _brightness(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    _towards(view, out, level, 0)


_LUMA = np.array([0.299, 0.587, 0.114])


def _contrast(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    _towards(view, out, level, int(np.dot(_LUMA, cv2.mean(view)[:3]) + 0.5))


def _color(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    matrix = np.empty((3, 4))
    matrix[:, :3] = (1.0 - level) * _LUMA + level * np.eye(3)
    matrix[:, 3] = -0.5  # Pillow truncates where OpenCV rounds
    cv2.transform(view, matrix, dst=out)


def _sharpness(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    kernel = np.full((3, 3), (1.0 - level) / 13)
    kernel[1, 1] = (1.0 - level) * 5 / 13 + level
    cv2.filter2D(view, -1, kernel, dst=out, delta=-0.25)
    out[0], out[-1], out[:, 0], out[:, -1] = view[0], view[-1], view[:, 0], view[:, -1]


def _rotate(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    cos, sin = math.cos(math.radians(level)), math.sin(math.radians(level))
    half = len(view) / 2
    _warp(view, out, (cos, -sin, half - half * cos + half * sin), (sin, cos, half - half * sin - half * cos))


def _shear_x(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    _warp(view, out, (1.0, level, 0.0), (0.0, 1.0, 0.0))


def _shear_y(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    _warp(view, out, (1.0, 0.0, 0.0), (level, 1.0, 0.0))


def _translate_x(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    _warp(view, out, (1.0, 0.0, level * len(view)), (0.0, 1.0, 0.0))


def _translate_y(view: np.ndarray, out: np.ndarray, level: float, scratch: Scratch) -> None:
    _warp(view, out, (1.0, 0.0, 0.0), (0.0, 1.0, level * len(view)))


Row = tuple[float, float, float]


def _warp(view: np.ndarray, out: np.ndarray, row_x: Row, row_y: Row) -> None:
    """Fill out[y, x] from (row_x · (x, y, 1), row_y · (x, y, 1)), in coordinates where pixel centres end in .5."""
    rows = [(a, b, c + (a + b) / 2 - 0.5) for a, b, c in (row_x, row_y)]
    side = len(view)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(
        view, np.array(rows), (side, side), dst=out, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=FILL
    )


OPS: dict[str, Operation] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "brightness": _brightness,
    "contrast": _contrast,
    "color": _color,
    "sharpness": _sharpness,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
