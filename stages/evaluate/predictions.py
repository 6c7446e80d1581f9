"""Evaluate: every head's predictions for centre crops, each image exactly once, and its accuracy.

A model's answers are kept image by image; accuracy, ImageNet-Real's accuracy and disagreement between models are all
counted from them. Rejected: summing hits as the batches come, which leaves nothing that a figure could be traced to.

Legend: B images of a batch, N of a image_set, K classes, S side of a crop, T = min(5, K) ranks kept.
"""

import io
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.receipts import PartOutput, Receipt
from schemas.tables import PREDICTIONS
from stages.data.center_crop import Crops, centre_crops
from stages.data.image_set import ImageSet
from stages.evaluate.evaluated_model import ModelRef, open_evaluated_model
from stages.evaluate.reports import HEADS
from stages.models.classifier import Heads
from stages.storage.commit import read_checked
from stages.storage.store import Store

_COLUMNS = dict(zip(HEADS, ("top", "top_distillation", "top_fused", "top_softmax"), strict=True))
"""Columns of the table by their heads."""
_RANKS = 5


@dataclass(frozen=True)
class BlockSpec:
    """A block of an image set as a unit of work."""

    block: int

    @property
    def name(self) -> str:
        """Of its part."""
        return f"block-{self.block:06d}"


class Predictor:
    """Asks one model about blocks of one image_set, on one device; see `__call__`."""

    def __init__(self, config: RunFile, ref: ModelRef, image_set: ImageSet, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(os.cpu_count() or 1)  # not what the launcher left: bits may depend on it
        self.image_set, self.settings, self.threads = image_set, config.evaluate, config.train.processes
        self.evaluated = open_evaluated_model(config, ref, image_set, torch.device(device))

    def __call__(self, spec: BlockSpec, staging: Path) -> PartOutput:
        """Answers for one block.

        Raises:
            UserError: if an image cannot be read.
        """
        settings = self.settings
        crops = centre_crops(
            self.image_set,
            spec.block,
            image_size=self.evaluated.image_size,
            crop_pct=settings.crop_pct,
            batch=settings.batch_size,
            threads=self.threads,
        )
        table = predict(self.evaluated.heads, crops, self.evaluated.untrained)
        path = staging / f"{spec.name}.parquet"
        pq.write_table(table, path, compression="zstd")
        return PartOutput(files={path.name: path}, rows=len(table), facts={})


def predict(heads: Callable[[Tensor], Heads], crops: Iterable[Crops], untrained: Collection[str] = ()) -> pa.Table:
    """A model's predictions for batches, as `schemas.tables.PREDICTIONS`.

    Args:
        heads: logits of uint8 views [B, S, S, 3].
        crops: at least one batch.
        untrained: heads that were never trained, whose columns stay null.
    """
    batches = []
    for views, classes, names in crops:
        ranked = {_COLUMNS[head]: _ranked(logits) for head, logits in rankings(heads(views), untrained).items()}
        columns = {"name": names, "class": classes.numpy()} | ranked
        filled = [pa.array(columns.get(field.name, [None] * len(names)), field.type) for field in PREDICTIONS]
        batches.append(pa.record_batch(filled, schema=PREDICTIONS))
    return pa.Table.from_batches(batches).combine_chunks()


def rankings(heads: Heads, untrained: Collection[str] = ()) -> dict[str, Tensor]:
    """Scores [B, K] by which each head ranks the classes, and both ways to fuse them; one for a single head.

    A head that was never trained has no predictions, and neither has a fusion with it.
    """
    if heads.distillation is None:
        return {"class": heads.classes}
    if untrained:
        return {"distillation": heads.distillation} if "class" in untrained else {"class": heads.classes}
    softmaxes = heads.classes.float().softmax(1) + heads.distillation.float().softmax(1)
    return {
        "class": heads.classes,
        "distillation": heads.distillation,
        "fused": heads.fused,
        "fused_softmax": softmaxes,
    }


def _ranked(scores_BK: Tensor) -> list[list[int]]:
    return scores_BK.topk(min(_RANKS, scores_BK.shape[1])).indices.tolist()


@dataclass(frozen=True)
class Predictions:
    """A model's predictions over a complete image set, in its order.

    Attributes:
        names: of the images.
        classes: their own, int64 [N].
        top: by head, the most probable classes, int64 [N, T]; heads that a model lacks, or that were never trained, are
            absent.
    """

    names: list[str]
    classes: np.ndarray
    top: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, store: Store, receipts: Sequence[Receipt]) -> "Predictions":
        """What the parts of a folder hold, in their order.

        Raises:
            UserError: if a file differs from its receipt.
        """
        files = [file for receipt in receipts for file in receipt.files]
        return cls.of(pa.concat_tables([pq.read_table(io.BytesIO(read_checked(store, file))) for file in files]))

    @classmethod
    def of(cls, table: pa.Table) -> "Predictions":
        """What a table holds."""
        there = {head: table[column] for head, column in _COLUMNS.items() if not table[column].null_count}
        top = {head: np.array(column.to_pylist(), np.int64) for head, column in there.items()}
        return cls(table["name"].to_pylist(), table["class"].to_numpy().astype(np.int64), top)


def score(found: Predictions, truth: Sequence[Collection[int]]) -> dict[str, Any]:
    """Top-1 and top-5 of every head as fractions; None for heads that it has not, or that were never trained.

    Args:
        found: a model's answers.
        truth: an image's true classes, of which any is right; an image without one is not scored.

    Raises:
        UserError: if no image is scored.
    """
    scored, hits = count_hits(found, truth)
    if not scored:
        raise UserError("evaluate: there are no images with labels")
    result: dict[str, Any] = {"samples": scored}
    for head in HEADS:
        result[head] = None
        if head in hits:
            top1, top5 = hits[head]
            result[head] = {"top1": top1 / scored, "top5": top5 / scored}
    return result


def count_hits(found: Predictions, truth: Sequence[Collection[int]]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Number of images that are scored, and by head how many are right at rank 1 and among the ranks kept.

    Args:
        found: a model's answers.
        truth: an image's true classes, of which any is right; an image without one is not scored.
    """
    scored = np.array([bool(classes) for classes in truth], bool)
    counts = {}
    for head in found.top:
        hits = [[one in classes for one in ranks] for ranks, classes in zip(found.top[head], truth, strict=True)]
        right = np.array(hits, bool).reshape(len(hits), -1)[scored]
        counts[head] = int(right[:, 0].sum()), int(right.any(1).sum())
    return int(scored.sum()), counts
