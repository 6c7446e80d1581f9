"""Apply: an image and a decision become a uint8 view, the same on every call, thread count and worker.

A Renderer keeps every buffer it needs: a fresh 150 KB result costs more in page faults than many
operations do in arithmetic. Rejected: Pillow for the pixels, which is most of timm's time
(benchmarks/replay.py), and one warp for two geometric operations, which skips a blur and a border.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch

from schemas.recipe import IMAGENET_MEAN, IMAGENET_STD
from stages.replay.colour import COLOUR_OPS
from stages.replay.decide import DecidedView, Erase
from stages.replay.draws import Draws, Purpose
from stages.replay.geometry import FILL, Geometry

_RESIZE: Any = torch._C._nn._upsample_bicubic2d_aa  # what torch.nn.functional.interpolate calls, with `out`


class Renderer:
    """Renders views of one size; one a process, not thread-safe."""

    def __init__(self, image_size: int) -> None:
        self._size = image_size
        self._spare = np.empty((image_size, image_size, 3), np.uint8)
        self._source = np.empty(0, np.uint8)
        geometry = Geometry(image_size)
        self._operations: dict[str, Callable[..., None]] = COLOUR_OPS | {
            "rotate": geometry.rotate,
            "shear_x": geometry.shear_x,
            "shear_y": geometry.shear_y,
            "translate_x": geometry.translate_x,
            "translate_y": geometry.translate_y,
        }
        self._noise: dict[int, Draws] = {}

    def render(self, image: np.ndarray, decided: DecidedView, out: np.ndarray) -> None:
        """Write the view of an image into `out`.

        Args:
            image: uint8 RGB, (height, width, 3), as `decode` returns it.
            decided: what `Decider.view` decided for that height and width.
            out: uint8, (image_size, image_size, 3), C-contiguous.

        Raises:
            ValueError: if `out` has another shape, type or layout.
        """
        self._check(out)
        self._crop(image, decided, out)
        self._finish(decided, out)

    def render_all(self, image: np.ndarray, decided: Sequence[DecidedView], outs: Iterable[np.ndarray]) -> None:
        """Write several views of one image, as `render` would; crops them all while the image is in the cache.

        Args:
            image: uint8 RGB, (height, width, 3).
            decided: one decision for each view.
            outs: as many buffers of the form that `render` takes; an array of them will do.

        Raises:
            ValueError: if there are not as many, or one has another shape, type or layout.
        """
        pairs = list(zip(decided, outs, strict=True))
        for one, out in pairs:
            self._check(out)
            self._crop(image, one, out)
        for one, out in pairs:
            self._finish(one, out)

    def _check(self, out: np.ndarray) -> None:
        shape = self._spare.shape
        if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out: must be C-contiguous uint8 of shape {shape}, not {out.dtype} of {out.shape}")

    def _crop(self, image: np.ndarray, decided: DecidedView, out: np.ndarray) -> None:
        """Crop, flip, and resize bicubic with antialiasing, as Pillow does."""
        box = decided.crop
        crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
        source = self._kept(crop, decided.flip)
        source_BCHW, target_BCHW = (torch.from_numpy(pixels[None]).permute(0, 3, 1, 2) for pixels in (source, out))
        _RESIZE(source_BCHW, [self._size, self._size], False, out=target_BCHW)

    def _kept(self, crop: np.ndarray, flip: bool) -> np.ndarray:
        """Copy a crop into the kept buffer, flipped or not: the resize wants it contiguous."""
        if crop.size > self._source.size:
            self._source = np.empty(crop.size, np.uint8)
        kept = self._source[: crop.size].reshape(crop.shape)
        if flip:
            cv2.flip(crop, 1, dst=kept)
        else:
            np.copyto(kept, crop)
        return kept

    def _finish(self, decided: DecidedView, out: np.ndarray) -> None:
        """Operations, from one buffer into the other and back, and erasing."""
        view, other = out, self._spare
        for op in decided.ops:
            self._operations[op.name](view, other, op.level)
            view, other = other, view
        if view is not out:
            np.copyto(out, view)
        if decided.erase:
            self._erase(out, decided.erase)

    def _erase(self, view: np.ndarray, erase: Erase) -> None:
        """Fill a box with noise or the mean colour: what erasing after normalisation gives, as levels."""
        box = erase.box
        patch = view[box.top : box.top + box.height, box.left : box.left + box.width]
        if erase.noise is None:
            cv2.rectangle(view, (box.left, box.top, box.width, box.height), FILL, cv2.FILLED)
            return
        seed, *address = erase.noise
        if seed not in self._noise:
            self._noise[seed] = Draws(seed, Purpose.NOISE)
        count = 3 * box.height * box.width
        codes = self._noise[seed].at(*address).words((count + 7) // 8).astype("<u8", copy=False).view(np.uint8)
        cv2.LUT(codes[:count].reshape(box.height, box.width, 3), _noise_levels(), dst=patch)


@cache
def _noise_levels() -> np.ndarray:
    """uint8 (1, 256, 3): the level for each of 256 equally likely codes, so that they follow a clipped normal.

    Within a standard deviation the codes lie closer than the levels, so every level occurs, and clipping leaves
    little beyond two. Rejected: sixteen bits a code, twice the time for what no test tells apart.
    """
    normal = torch.special.ndtri((torch.arange(256, dtype=torch.float64)[:, None] + 0.5) / 256).numpy()
    levels = 255 * (np.array(IMAGENET_MEAN) + np.array(IMAGENET_STD) * normal)
    return np.asarray(np.rint(levels.clip(0, 255)).astype(np.uint8)[None])
