"""Signatures: the proof that a student sees the pixels its teacher saw.

The label stage keeps a small picture of a few unmixed views of every shard, the trainer makes the same views and
compares. Means over a 4 x 4 grid pass over the ±1 rounding by which CPUs may differ, and catch a wrong crop, flip, op
or image at once.
"""

import numpy as np

from schemas.tables import SIGNATURE_SIDE

SIGNED_ROWS = 2
"""Views of a shard that are signed in each view number; they walk through its rows as the number grows."""

TOLERANCE = 2
"""Largest difference, in levels of 0 … 255, of two signatures of one view."""


def signed_rows(view: int, rows: int) -> set[int]:
    """The rows of a shard whose view of this number carries a signature."""
    return {(view * SIGNED_ROWS + nth) % rows for nth in range(SIGNED_ROWS)}


def signature(view_HWC: np.ndarray) -> np.ndarray:
    """Means of each channel over a 4 x 4 grid, rounded: uint8 [H, W, 3] → uint8 [48]."""
    edges = np.arange(SIGNATURE_SIDE) * view_HWC.shape[0] // SIGNATURE_SIDE
    sums = np.add.reduceat(np.add.reduceat(view_HWC, edges, axis=0, dtype=np.int64), edges, axis=1)
    lengths = np.diff(np.append(edges, view_HWC.shape[0]))
    means: np.ndarray = sums / (lengths[:, None, None] * lengths[None, :, None])
    return np.rint(means).astype(np.uint8).ravel()


def differs(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two signatures cannot be of one view."""
    return bool(np.abs(first.astype(np.int16) - second.astype(np.int16)).max() > TOLERANCE)
