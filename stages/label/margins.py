"""How far decisions can be trusted: whose class they name, by what margin, and what another rounding would change.

A margin is the largest logit less the second. Only counts are kept of margins, so that parts add up without
their numbers. Rejected: storing every margin, which takes as many bytes as the decision.

Legend: N decisions, B views of a batch, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.config import RunFile
from stages.data.split import Split
from stages.data.views import ViewMaker, part_batches, stack_mixes
from stages.label.label_set import LabelSpec
from stages.models.teacher import Teacher
from stages.replay.mix import Mix

EDGES = 2.0 ** np.arange(-12, 5.5, 0.5)
"""Between the bins of margins; the first bin is all below, the last all above."""

SHARES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75}
"""Quantiles that are reported."""

_ROUNDING = {"fp32": 2.0**-18, "tf32": 2.0**-8, "fp16": 2.0**-8, "bf16": 2.0**-5}
"""How far rounding moves a logit, relative to the view's largest: 64 units of fp32's last place, 8 of the others'."""


def near_tie(logits_BK: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Margins of a batch, float32 [B], and whether each lies within rounding of a tie, bool [B]."""
    top_B2 = logits_BK.topk(2, dim=1).values
    margin_B = top_B2[:, 0] - top_B2[:, 1]
    return margin_B, margin_B <= _ROUNDING[precision] * logits_BK.abs().amax(1)


def histogram(margins: np.ndarray) -> list[int]:
    """How many margins lie in each bin."""
    return np.bincount(np.searchsorted(EDGES, margins, side="right"), minlength=len(EDGES) + 1).tolist()


def quantiles(counts: Sequence[int]) -> dict[str, float]:
    """The margins below which given shares lie, to the width of a bin (a factor of 1.4), interpolated in it."""
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


def stability(run: RunFile, split: Split, device: torch.device, count: int) -> list[dict[str, Any]]:
    """The same views decided in other precisions and batch sizes, against fp32 in the run file's batch size.

    Args:
        run: the run file.
        split: the sharded split.
        device: where the teacher runs.
        count: of views, spread over the first pass of all shards; all are kept in memory.

    Returns:
        For each way: `precision`, `batch_size`, what `flips` says, and `largest_difference` of two logits.
    """
    views_BHWC, how = _sample(run, split, count)
    size = run.teacher.batch_size
    base = _logits(run, split, device, "fp32", size, views_BHWC, how)
    margins, _ = near_tie(base, "fp32")
    ways = [("fp32", one) for one in (2, 16, 64, 256) if one != size] + [("bf16", size), ("fp16", size)]
    ways += [("tf32", size)] if device.type == "cuda" else []
    report = []
    for precision, batch in ways:
        other = _logits(run, split, device, precision, batch, views_BHWC, how)
        changed = flips(base.argmax(1).numpy(), other.argmax(1).numpy(), margins.numpy())
        difference = float((other - base).abs().max())
        report.append({"precision": precision, "batch_size": batch, **changed, "largest_difference": difference})
    return report


def _sample(run: RunFile, split: Split, count: int) -> tuple[Tensor, Mix]:
    pairs = [
        unit
        for shard in range(len(split.rows))
        for units in part_batches(split, run.views, LabelSpec(shard, 0, 1), 2)
        for unit in units
    ]
    step = max(1, len(pairs) // max(1, count // 2))
    chosen = pairs[::step][: count // 2]
    maker, side = ViewMaker(split, run.views), run.views.image_size
    views = np.empty((2 * len(chosen), side, side, 3), np.uint8)
    for nth, unit in enumerate(chosen):
        maker.view(unit.shard, unit.row_a, unit.view, views[2 * nth])
        maker.view(unit.shard, unit.row_b, unit.view, views[2 * nth + 1])
    mixes = stack_mixes([maker.decider.mix(unit.shard, unit.pair, unit.view) for unit in chosen])
    return torch.from_numpy(views), mixes


def _logits(
    run: RunFile, split: Split, device: torch.device, precision: str, size: int, views_BHWC: Tensor, how: Mix
) -> Tensor:
    settings = run.teacher.model_copy(update={"precision": precision, "batch_size": size})
    teacher = Teacher(
        settings,
        workspace=run.workspace,
        num_classes=len(split.classes),
        image_size=run.views.image_size,
        device=device,
    )
    parts = [
        teacher.logits(views_BHWC[at : at + size], Mix(*(one[at // 2 : (at + size) // 2] for one in how)))
        for at in range(0, len(views_BHWC), size)
    ]
    return torch.cat(parts).cpu()
