"""Distributions of a teacher, as a label set keeps them and losses take them.

Legend: B views, K classes, k kept classes.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class SoftLabels(NamedTuple):
    """A teacher's distributions, as a label set keeps them.

    Attributes:
        logits: of all K classes in their order, shape (B, K), or of k of them, shape (B, k).
        classes: which k, int64 of shape (B, k); None = all.
        log_sum_exp: over all K classes, of logits / tau, float32 of shape (B,); None = all logits are there.
    """

    logits: Tensor
    classes: Tensor | None
    log_sum_exp: Tensor | None

    def map(self, do: Callable[[Tensor], Tensor]) -> "SoftLabels":
        """The same with something done to each tensor."""
        return SoftLabels(do(self.logits), *(one if one is None else do(one) for one in self[1:]))
