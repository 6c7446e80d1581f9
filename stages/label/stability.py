"""The same views decided again in other precisions and batch sizes.

Legend: N decisions, B views of a batch, K classes.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.config import RunFile
from stages.data.split import Split
from stages.data.views import ViewRenderer, stack_mixes
from stages.label.dataset import part_batches
from stages.label.label_set import LabelSpec
from stages.label.margins import flips, near_tie
from stages.models.teacher import Teacher
from stages.replay.mix import Mix
from stages.storage.run_files import warning_of_classes


def stability(config: RunFile, split: Split, device: torch.device, count: int) -> list[dict[str, Any]]:
    """The same views decided in other precisions and batch sizes, against fp32 in the run file's batch size.

    Args:
        config: the run file.
        split: the sharded split.
        device: where the teacher runs.
        count: of views, spread over the first pass of all shards; all are kept in memory.

    Returns:
        For each way: `precision`, `batch_size`, the fields of `flips`, and `largest_difference` of two logits.
    """
    for member in config.teacher.members:
        warning_of_classes("teacher.checkpoint", member.checkpoint, config.workspace, split.classes, split.content)
    views_BHWC, mixes = _sample(config, split, count)
    size = config.teacher.batch_size
    base = _logits(config, split, device, "fp32", size, views_BHWC, mixes)
    margins, _ = near_tie(base, "fp32")
    ways = [("fp32", one) for one in (2, 16, 64, 256) if one != size] + [("bf16", size), ("fp16", size)]
    ways += [("tf32", size)] if device.type == "cuda" else []
    report = []
    for precision, batch in ways:
        other = _logits(config, split, device, precision, batch, views_BHWC, mixes)
        changed = flips(base.argmax(1).numpy(), other.argmax(1).numpy(), margins.numpy())
        difference = float((other - base).abs().max())
        report.append({"precision": precision, "batch_size": batch, **changed, "largest_difference": difference})
    return report


def _sample(config: RunFile, split: Split, count: int) -> tuple[Tensor, Mix]:
    pairs = [
        unit
        for shard in range(len(split.rows))
        for units in part_batches(split, config.views, LabelSpec(shard, 0, 1), 2)
        for unit in units
    ]
    step = max(1, len(pairs) // max(1, count // 2))
    chosen = pairs[::step][: count // 2]
    maker, side = ViewRenderer(split, config.views), config.views.image_size
    views = np.empty((2 * len(chosen), side, side, 3), np.uint8)
    for nth, unit in enumerate(chosen):
        maker.view(unit.shard, unit.row_a, unit.view, views[2 * nth])
        maker.view(unit.shard, unit.row_b, unit.view, views[2 * nth + 1])
    mixes = stack_mixes([maker.decider.mix(unit.shard, unit.pair, unit.view) for unit in chosen])
    return torch.from_numpy(views), mixes


def _logits(
    config: RunFile, split: Split, device: torch.device, precision: str, size: int, views_BHWC: Tensor, mixes: Mix
) -> Tensor:
    settings = config.teacher.model_copy(update={"precision": precision, "batch_size": size})
    teacher = Teacher(
        settings,
        workspace=config.workspace,
        num_classes=len(split.classes),
        image_size=config.views.image_size,
        device=device,
    )
    parts = [
        teacher.logits(views_BHWC[at : at + size], Mix(*(one[at // 2 : (at + size) // 2] for one in mixes)))
        for at in range(0, len(views_BHWC), size)
    ]
    return torch.cat(parts).cpu()
