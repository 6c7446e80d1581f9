"""Evaluate: top-1 and top-5 of every head on centre crops, each image exactly once.

Legend: B images of a batch, K classes, S side of a crop. Crops are timm's own evaluation transform on
Pillow's decoding (resize the short side to size / crop_pct bicubic, centre crop), so that figures
compare with everybody's.
"""

import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from schemas.errors import PipelineError
from stages.dataset import Split
from stages.replay.mix import normalise
from stages.student import Classifier, Heads


class CentreCrops(Dataset[tuple[Tensor, Tensor]]):
    """A split's centre crops in batches: uint8 [B, S, S, 3] and true classes, int64 [B].

    Args:
        split: the sharded split.
        image_size: S.
        crop_pct: the crop's share of the resized short side.
        batch: B; the last batch is smaller.
        shard: only this shard; None = all of them.
    """

    def __init__(self, split: Split, image_size: int, crop_pct: float, batch: int, shard: int | None = None) -> None:
        self.split, self.batch = split, batch
        shards = range(len(split.rows)) if shard is None else (shard,)
        self.addresses = [(number, row) for number in shards for row in range(split.rows[number])]
        self.transform: Callable[[Image.Image], np.ndarray] = create_transform(
            image_size, is_training=False, interpolation="bicubic", crop_pct=crop_pct, use_prefetcher=True
        )

    def __len__(self) -> int:
        return -(-len(self.addresses) // self.batch)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """One batch.

        Raises:
            PipelineError: if an image's bytes are wrong.
        """
        mine = self.addresses[number * self.batch : (number + 1) * self.batch]
        crops = np.stack([self.crop(*address) for address in mine])
        classes = [int(self.split.index(shard).classes[row]) for shard, row in mine]
        return torch.from_numpy(crops), torch.tensor(classes)

    def crop(self, shard: int, row: int) -> np.ndarray:
        """A sample's centre crop, uint8 [S, S, 3]."""
        with Image.open(io.BytesIO(self.split.image(shard, row))) as image:
            return np.asarray(self.transform(image.convert("RGB"))).transpose(1, 2, 0)


@torch.inference_mode()
def accuracy(
    model: Classifier, crops: Iterable[tuple[Tensor, Tensor]], device: torch.device, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Top-1 and top-5 of the class, distillation and fused heads, as fractions.

    `fused` is the argmax of the mean of both heads' logits (the authors' code), `fused_softmax` that of the sum of
    their softmaxes (the paper). All but `class` are None for models with one head.

    Args:
        model: in eval mode, on `device`.
        crops: batches as `CentreCrops` gives them.
        device: of the model.
        advance: called with the number of images of each batch.

    Raises:
        PipelineError: if there is no image.
    """
    hits: dict[str, np.ndarray] = {}
    samples = 0
    for views, classes in crops:
        heads = model(normalise(views.to(device, non_blocking=True), model.mean, model.std))
        truth = classes.to(device)
        for name, logits in _rankings(heads).items():
            hits[name] = hits.get(name, np.zeros(2, np.int64)) + _hits(logits, truth)
        samples += len(classes)
        advance(len(classes))
    if not samples:
        raise PipelineError("evaluate: the split has no images")
    fractions = {name: {"top1": one[0] / samples, "top5": one[1] / samples} for name, one in hits.items()}
    return {"samples": samples} | {
        name: fractions.get(name) for name in ("class", "distillation", "fused", "fused_softmax")
    }


def _rankings(heads: Heads) -> dict[str, Tensor]:
    if heads.distillation is None:
        return {"class": heads.classes}
    softmaxes = heads.classes.float().softmax(1) + heads.distillation.float().softmax(1)
    return {
        "class": heads.classes,
        "distillation": heads.distillation,
        "fused": heads.fused,
        "fused_softmax": softmaxes,
    }


def _hits(logits_BK: Tensor, truth_B: Tensor) -> np.ndarray:
    """How many truths are first, and among the first five."""
    best = logits_BK.topk(min(5, logits_BK.shape[1])).indices == truth_B[:, None]
    return np.array([int(best[:, 0].sum()), int(best.any(1).sum())])
