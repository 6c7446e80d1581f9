"""Colour: operations that change levels and not places, on uint8 RGB, from one buffer into another.

Each follows Pillow's arithmetic to the level, or ±1 where it mixes channels or neighbours: the
policies were learnt on Pillow. Rejected: Pillow itself, whose copies in and out cost more than the work.
"""

from collections.abc import Callable

import cv2
import numpy as np

ColourOp = Callable[[np.ndarray, np.ndarray, float], None]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's "L"
_GREY = np.array([(*_LUMA, 0.0)] * 3)  # the affine map of a pixel to its own grey
_SAME = np.eye(3, 4)
_TRUNCATE = -0.4995  # added where OpenCV rounds and Pillow truncates
_LEVELS = np.arange(256)


def autocontrast(view: np.ndarray, out: np.ndarray, _: float) -> None:
    """Stretch each channel to the full range."""
    side = len(view)
    rows = view.reshape(side, side * 3)
    lows = rows.min(axis=0).reshape(side, 3).min(axis=0).tolist()
    highs = rows.max(axis=0).reshape(side, 3).max(axis=0).tolist()
    stretch = np.zeros((3, 4))
    for channel, (low, high) in enumerate(zip(lows, highs, strict=True)):
        scale = 255 / (high - low) if high > low else 1.0
        stretch[channel, channel] = scale
        stretch[channel, 3] = _TRUNCATE - low * scale if high > low else 0.0
    cv2.transform(view, stretch, dst=out)


def equalize(view: np.ndarray, out: np.ndarray, _: float) -> None:
    """Flatten each channel's histogram."""
    histograms = [cv2.calcHist([view], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    counts = np.array(histograms, np.int64)
    brightest = counts[range(3), 255 - (counts[:, ::-1] > 0).argmax(axis=1)]
    step = (view.size // 3 - brightest)[:, None] // 255
    levels = (counts.cumsum(axis=1) - counts + step // 2) // np.maximum(step, 1)
    tables = np.where(step > 0, np.minimum(levels, 255), _LEVELS).astype(np.uint8)
    cv2.LUT(view, np.ascontiguousarray(tables.T)[None], dst=out)


def invert(view: np.ndarray, out: np.ndarray, _: float) -> None:
    """Turn every level v into 255 - v."""
    cv2.bitwise_not(view, dst=out)


def posterize(view: np.ndarray, out: np.ndarray, bits: float) -> None:
    """Keep the highest `bits` bits; 0 = black, which Pillow no longer allows."""
    np.bitwise_and(view, np.uint8(256 - (1 << (8 - min(8, int(bits))))), out=out)


def solarize(view: np.ndarray, out: np.ndarray, threshold: float) -> None:
    """Invert the levels from `threshold` up."""
    bright = np.greater_equal(view, int(threshold)).view(np.uint8)
    np.bitwise_xor(view, np.negative(bright, out=bright), out=out)


def solarize_add(view: np.ndarray, out: np.ndarray, added: float) -> None:
    """Add `added`, at most 128, to the levels below 128."""
    dark = np.less(view, 128).view(np.uint8)
    np.add(view, np.multiply(dark, np.uint8(added), out=dark), out=out)


def brightness(view: np.ndarray, out: np.ndarray, factor: float) -> None:
    """Blend with black; factor 1 changes nothing."""
    cv2.convertScaleAbs(view, dst=out, alpha=factor, beta=_TRUNCATE)


def contrast(view: np.ndarray, out: np.ndarray, factor: float) -> None:
    """Blend with the view's mean grey; factor 1 changes nothing."""
    mean = cv2.mean(view)
    grey = int(sum(weight * level for weight, level in zip(_LUMA, mean, strict=False)) + 0.5)
    cv2.addWeighted(view, factor, view, 0.0, (1.0 - factor) * grey + _TRUNCATE, dst=out)


def color(view: np.ndarray, out: np.ndarray, factor: float) -> None:
    """Blend with each pixel's own grey; factor 1 changes nothing."""
    blend = factor * _SAME + (1.0 - factor) * _GREY
    blend[:, 3] = _TRUNCATE
    cv2.transform(view, blend, dst=out)


def sharpness(view: np.ndarray, out: np.ndarray, factor: float) -> None:
    """Blend with a smoothed view, the outermost pixels excepted; factor 1 changes nothing."""
    # smoothed = (the 3x3 sum + 4 times the centre) / 13
    cv2.blur(view, (3, 3), dst=out)
    mean_weight = (1.0 - factor) * 9 / 13
    cv2.addWeighted(out, mean_weight, view, 1.0 - mean_weight, _TRUNCATE, dst=out)
    out[0], out[-1], out[:, 0], out[:, -1] = view[0], view[-1], view[:, 0], view[:, -1]


COLOUR_OPS: dict[str, ColourOp] = {
    operation.__name__: operation
    for operation in (
        autocontrast,
        equalize,
        invert,
        posterize,
        solarize,
        solarize_add,
        brightness,
        contrast,
        color,
        sharpness,
    )
}
