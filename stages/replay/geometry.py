"""Geometry: rotate, shear and translate uint8 RGB views, with the ImageNet mean where there is no source.

Coordinates and edges are Pillow's: pixel centres end in .5, a pixel whose source centre lies off the
view gets the fill, and no other pixel has any of it. Shears and translations move whole rows or columns, so they are
4-tap bicubic filters along one axis; a rotation is a bilinear warp of a sharpened view. Rejected: OpenCV's bicubic
warp, three times slower; for shears it is also further from Pillow, whose cubic has another parameter. OpenCV's
constant border, which blends the outermost pixels with the fill: networks see that rim (docs/replay.md).
"""

import math

import cv2
import numpy as np

from schemas.recipe import IMAGENET_MEAN

FILL = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
_SHARPEN = 0.4  # undoes the blur of a bilinear warp, on average over its fractions
_TRUNCATE = -0.4995  # added where OpenCV rounds and Pillow truncates
_EDGE = 2  # a visible pixel's four taps reach at most this far beyond the view
_BITS = 4  # a sheared row's shift is rounded to sixteenths of a pixel
_PHASES = 1 << _BITS


def _cubic(fraction: float) -> np.ndarray:
    """Weights of the pixels at -1, 0, 1 and 2 around a fraction (Keys 1981 with a = -1): float32 (4,)."""
    d, e = fraction, 1 - fraction
    return np.array([-d * e * e, e * (1 + d * e), d * (1 + d * e), -d * d * e], np.float32)


class Geometry:
    """The geometric operations on views of one size; keeps their buffers."""

    def __init__(self, image_size: int) -> None:
        size = self._size = image_size
        self._fill = np.full((size, size, 3), FILL, np.uint8)
        self._turned = np.empty_like(self._fill)
        self._inside, self._outside = np.zeros((size, size), np.uint8), np.empty((size, size), np.uint8)
        self._padded = np.zeros((size + 2 * _EDGE, size + 2 * _EDGE, 3), np.uint8)
        self._filtered = np.empty_like(self._padded)
        row, window = self._padded.strides[0], 3 * (size + 3)
        self._windows = np.lib.stride_tricks.sliding_window_view(self._padded.reshape(-1), window)
        self._starts = np.arange(_EDGE, size + _EDGE) * row + 3 * (_EDGE - 1)
        self._odd = 2 * np.arange(size) + 1
        self._to_left, self._to_right = -np.arange(size), size - np.arange(size)
        self._kernels = [_cubic(phase / _PHASES)[None] for phase in range(_PHASES)]

    def rotate(self, view: np.ndarray, out: np.ndarray, degrees: float) -> None:
        """Rotate counter-clockwise about the centre."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        centre = (self._size - 1) / 2
        matrix = np.array([[cos, -sin, centre * (1 - cos + sin)], [sin, cos, centre * (1 - sin - cos)]])
        cv2.blur(view, (3, 3), dst=out)
        cv2.addWeighted(view, 1 + _SHARPEN, out, -_SHARPEN, _TRUNCATE, dst=self._turned)
        side, inverse = view.shape[:2], cv2.WARP_INVERSE_MAP
        bilinear, nearest = cv2.INTER_LINEAR | inverse, cv2.INTER_NEAREST | inverse
        cv2.warpAffine(self._turned, matrix, side, dst=out, flags=bilinear, borderMode=cv2.BORDER_REPLICATE)
        cv2.warpAffine(self._inside, matrix, side, dst=self._outside, flags=nearest, borderValue=255)
        cv2.copyTo(self._fill, self._outside, out)

    def shear_x(self, view: np.ndarray, out: np.ndarray, slope: float) -> None:
        """Take each row from `slope` pixels further right for each pixel of its height."""
        self._slide(view, out, slope)

    def shear_y(self, view: np.ndarray, out: np.ndarray, slope: float) -> None:
        """Take each column from `slope` pixels further down for each pixel to the right."""
        cv2.transpose(view, dst=self._turned)
        self._slide(self._turned, self._turned, slope)
        cv2.transpose(self._turned, dst=out)

    def translate_x(self, view: np.ndarray, out: np.ndarray, share: float) -> None:
        """Take the view from `share` of its width further right."""
        self._shift(view, out, share * self._size, axis=1)

    def translate_y(self, view: np.ndarray, out: np.ndarray, share: float) -> None:
        """Take the view from `share` of its height further down."""
        self._shift(view, out, share * self._size, axis=0)

    def _shift(self, view: np.ndarray, out: np.ndarray, shift: float, axis: int) -> None:
        """Fill out[x] from view[x + shift], x along the axis."""
        whole, size = math.floor(shift), self._size
        low = min(max(0, math.ceil(-0.5 - shift)), size)
        high = max(min(size, math.ceil(size - 0.5 - shift)), low)
        for gap in (_along(axis, slice(0, low)), _along(axis, slice(high, size))):
            np.copyto(out[gap], self._fill[gap])
        if low == high:
            return
        # taps are at x + whole - 1 ... + 2; the filter is anchored at one that is inside the view for every visible x
        anchor = 1 if shift >= 0 else 2
        begin, end = max(0, low + whole - 1), min(size, high + whole + 2)
        first = low + whole + anchor - 1 - begin
        source = view[_along(axis, slice(begin, end))]
        filtered = self._turned[_along(axis, slice(0, end - begin))]
        kernel = _cubic(shift - whole)
        _filter(source, kernel[:, None] if axis == 0 else kernel[None], anchor, filtered)
        np.copyto(out[_along(axis, slice(low, high))], filtered[_along(axis, slice(first, first + high - low))])

    def _slide(self, view: np.ndarray, out: np.ndarray, slope: float) -> None:
        """Fill out[y, x] from view[y, x + slope * (y + .5)]; rows that share a fraction are filtered together."""
        exact = np.clip(round(slope * 2**20) * self._odd, -self._size << 21, self._size << 21)  # in 2**-21 pixels
        steps = (exact + (1 << (20 - _BITS))) >> (21 - _BITS)
        phases = steps & (_PHASES - 1)
        order = phases.argsort()
        ends = np.bincount(phases, minlength=_PHASES).cumsum().tolist()
        cv2.copyMakeBorder(view, _EDGE, _EDGE, _EDGE, _EDGE, cv2.BORDER_REPLICATE, dst=self._padded)
        # columns -1 to size + 1 of every shifted row, in the order of their fractions
        rows = self._windows[(self._starts + 3 * (steps >> _BITS))[order]].reshape(self._size, -1, 3)
        filtered = self._filtered[: self._size, : rows.shape[1]]
        for kernel, start, end in zip(self._kernels, [0, *ends], ends, strict=False):
            if start < end:
                _filter(rows[start:end], kernel, 1, filtered[start:end])
        out[order] = filtered[:, 1:-2]
        moved = ((exact + (1 << 20)) >> 21)[:, None]
        outside = self._to_left > moved if slope < 0 else self._to_right <= moved
        cv2.copyTo(self._fill, outside.view(np.uint8), out)


def _along(axis: int, span: slice) -> tuple[slice, slice]:
    """Index a view by a span along one axis."""
    return (span, slice(None)) if axis == 0 else (slice(None), span)


def _filter(source: np.ndarray, kernel: np.ndarray, anchor: int, out: np.ndarray) -> None:
    """Correlate with a row or a column of weights, `anchor` of them before each pixel, edges repeated."""
    at = (0, anchor) if len(kernel) > 1 else (anchor, 0)
    cv2.filter2D(source, -1, kernel, dst=out, anchor=at, delta=_TRUNCATE, borderType=cv2.BORDER_REPLICATE)
