"""Bytes that a plan stores, from the layout of what is stored rather than from what is there.

Legend: K classes, k kept classes.
"""

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from schemas.config import RunFile, TrainConfig
from schemas.tables import SIGNATURE_BYTES
from stages.label.label_file import write_labels
from stages.replay.signature import signed_rows

_NEAR = 64
"""Classes among which a teacher's next likeliest of an image's views are."""
_AGREES = (0.4, 0.22)
"""Shares of mixed views of which a teacher names the own class and the partner's; any class for the others. With these
the bytes are those that were measured on photographs (docs/labels.md)."""
_RECEIPT_BYTES = 650
_MOST_BYTES = 1_000_000
"""Of the columns of the part that is made: a larger one is written in part."""


class LabelBytes(NamedTuple):
    """A view's bytes in a label set, with its share in the part's file and receipt; core seconds to write it."""

    each: float
    core_seconds: float


def label_bytes(config: RunFile, classes: int, rows: int) -> LabelBytes:
    """Write a part of a label set as it would be, of made decisions, and count its bytes.

    Args:
        config: says what is kept of a view and how long parts are.
        classes: K.
        rows: images of a shard.
    """
    passes = min(config.labels.passes_per_part, config.labels.views // config.views.repeats)
    views = passes * config.views.repeats
    fewer = max(2, min(rows, _MOST_BYTES // (views * _width(config, classes))))
    columns = _decisions(config, classes, fewer, views)
    signed = {(row, view) for view in range(views) for row in signed_rows(view, rows) if row < fewer}
    random = np.random.default_rng(1)
    signatures = {address: random.bytes(SIGNATURE_BYTES) for address in signed}
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder, "part.parquet"), time.process_time()
        write_labels(path, config.labels.store, 0, columns, signatures)
        took, written = time.process_time() - start, path.stat().st_size
    footer = 2_000 if fewer < rows else 0  # counted once for the part, not once for its written share
    bytes_ = (written - footer) * rows / fewer + footer + _RECEIPT_BYTES
    return LabelBytes(bytes_ / (rows * views), took / (fewer * views))


def _width(config: RunFile, classes: int) -> int:
    """Bytes of a view before they are compressed, about."""
    kept = {"hard": 0, "topk": 4 * config.labels.topk, "full": 2 * classes, "compact": 3 * config.labels.topk}
    return 12 + kept.get(config.labels.store, 2 * config.labels.samples)


def _decisions(config: RunFile, classes: int, rows: int, views: int) -> dict[str, np.ndarray]:
    """The columns of a part whose teacher agrees with itself as one of ImageNet does."""
    random, count = np.random.default_rng(0), rows * views
    row, view = (one.ravel() for one in np.meshgrid(np.arange(rows), np.arange(views), indexing="ij"))
    own, partner = random.integers(0, classes, rows)[row], random.integers(0, classes, count)
    chance = random.random(count)
    decision = np.where(chance < _AGREES[0], own, np.where(chance < sum(_AGREES), partner, partner[::-1]))
    columns = {"row": row, "view": view, "decision": decision}
    store, k = config.labels.store, min(config.labels.topk, classes)
    if store == "full":
        columns["logits"] = random.normal(0, 2, (count, classes)).astype(np.float16)
    elif store == "sampled":
        columns["samples"] = np.sort(
            (classes * random.random((count, config.labels.samples)) ** 3).astype(np.int64), axis=1
        )
    elif store != "hard":
        near = random.integers(0, classes, (rows, _NEAR))
        others = near[row[:, None], (_NEAR * random.random((count, k)) ** 2).astype(np.int64)]
        others[:, 0] = decision
        falling = np.sort(random.exponential(1.5, (count, k)), axis=1)
        if store == "topk":
            logits = (10 - falling).astype(np.float16)
            sums = random.normal(10, 1, (2, count)).astype(np.float32)
            columns |= {"classes": others, "logits": logits, "lse_1": sums[0], "lse_tau": sums[1]}
        else:
            steps = np.minimum(falling[:, 1:] * 8, 255).astype(np.uint8)
            tails = random.normal(-40, 15, (2, count)).clip(-127, 127).astype(np.int8)
            columns |= {"others": others[:, 1:], "steps": steps, "tail_1": tails[0], "tail_tau": tails[1]}
    return columns


class ModelBytes(NamedTuple):
    """Bytes of a student's weights, and of one of its checkpoints."""

    weights: int
    checkpoint: int


def model_bytes(network: nn.Module, train: TrainConfig) -> ModelBytes:
    """Bytes by the network's own tensors: weights, moving average, and what the optimiser keeps of each parameter."""
    weights = sum(one.numel() * one.element_size() for one in network.state_dict().values())
    trained = sum(one.numel() * one.element_size() for one in network.parameters() if one.requires_grad)
    kept = {"adamw": 2, "sgd": 1}[train.optimizer] * trained
    return ModelBytes(weights, (2 if train.ema_decay else 1) * weights + kept)
