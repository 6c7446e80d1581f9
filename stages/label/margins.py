"""How far decisions can be trusted: whose class they name, by what margin, and what another rounding would change.

A margin is the largest logit less the second. Only counts are kept of margins, so that parts add up without
their numbers. Rejected: storing every margin, which takes as many bytes as the decision.

Legend: N decisions, B views of a batch, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

EDGES = 2.0 ** np.arange(-12, 5.5, 0.5)
"""Between the bins of margins; the first bin is all below, the last all above."""

SHARES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75}
"""Quantiles that are reported."""

_ROUNDING = {"fp32": 2.0**-18, "tf32": 2.0**-8, "fp16": 2.0**-8, "bf16": 2.0**-5}
"""How far rounding moves a logit, relative to the view's largest: 64 units of fp32's last place, 8 of the others'."""


def near_tie(logits_BK: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Margins of a batch, float32 [B], and whether each is within rounding of a tie, bool [B]."""
    top_B2 = logits_BK.topk(2, dim=1).values
    margin_B = top_B2[:, 0] - top_B2[:, 1]
    return margin_B, margin_B <= _ROUNDING[precision] * logits_BK.abs().amax(1)


def histogram(margins: np.ndarray) -> list[int]:
    """Number of margins in each bin."""
    return np.bincount(np.searchsorted(EDGES, margins, side="right"), minlength=len(EDGES) + 1).tolist()


def quantiles(counts: Sequence[int]) -> dict[str, float]:
    """Quantiles of the margins at given shares, to the width of a bin (a factor of 1.4), interpolated in it."""
    return {name: _quantile(np.asarray(counts), share) for name, share in SHARES.items()}


def _quantile(counts: np.ndarray, share: float) -> float:
    above = np.cumsum(counts)
    wanted = share * above[-1]
    bin_ = int(np.searchsorted(above, wanted))
    if bin_ == 0 or bin_ == len(EDGES):
        return float(EDGES[0] if bin_ == 0 else EDGES[-1])
    within = (wanted - above[bin_ - 1]) / counts[bin_]
    return round(float(EDGES[bin_ - 1] * (EDGES[bin_] / EDGES[bin_ - 1]) ** within), 5)


def flips(truth: np.ndarray, other: np.ndarray, margins: np.ndarray) -> dict[str, Any]:
    """How many decisions differ, and the margins by which they were decided.

    Args:
        truth: decisions, [N].
        other: decisions on the same views, [N].
        margins: of `truth`, [N].
    """
    changed = margins[truth != other]
    return {
        "decisions": len(truth),
        "flipped": len(changed),
        "share": len(changed) / max(len(truth), 1),
        "median_margin": float(np.median(changed)) if len(changed) else None,
        "largest_margin": float(changed.max()) if len(changed) else None,
    }
