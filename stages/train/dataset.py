"""Shards (and labels) → batches of uint8 views for training, by step.

A batch is a pure function of its step, so any number of data workers may build batches, and resuming is reading a
later step. How batches come from the workers is `stages/data/loader.py`.

Legend: B views of a local batch, U = B / 2 pair-views, S side of a view.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from schemas.errors import UserError
from schemas.recipe import Recipe
from stages.data.split import Split
from stages.data.views import ViewRenderer, pixel_versions
from stages.label.label_set import LabelSet
from stages.label.soft_labels import SoftLabels
from stages.replay.mix import Mix
from stages.replay.order import PairView, Stream
from stages.replay.signature import differs, signature


class Batch(NamedTuple):
    """What one rank trains on in one step.

    Attributes:
        step: number of the step.
        views: uint8 [B, S, S, 3], neighbours are each other's partners.
        classes: true classes, int64 [B].
        mix: how neighbours are mixed, over U.
        decisions: the teacher's classes, int64 [B]; empty without labels.
        soft: the teacher's distributions; None where the loss does not use them.
        kept: whose decision has the margin `train.min_margin`, bool [B]; None where that is 0.
    """

    step: int
    views: Tensor
    classes: Tensor
    mix: Mix
    decisions: Tensor
    soft: SoftLabels | None = None
    kept: Tensor | None = None

    def slots(self, start: int, end: int) -> "Batch":
        """Slots [start, end) of the batch, both even."""
        return Batch(
            step=self.step,
            views=self.views[start:end],
            classes=self.classes[start:end],
            mix=Mix(*(one[start // 2 : end // 2] for one in self.mix)),
            decisions=self.decisions[start:end],
            soft=self.soft and self.soft.map(lambda one: one[start:end]),
            kept=None if self.kept is None else self.kept[start:end],
        )


class TrainDataset(Dataset[Batch]):
    """A rank's batches by step: `steps[s]`.

    Args:
        split: the sharded split.
        recipe: of the views.
        stream: the order of the run.
        labels: the teacher's decisions; None = train without.
        soft_tau: the temperature for which distributions are wanted beside decisions; None = without.
        min_margin: of the decisions that are to be learned; 0 = all of them.
        batch: global batch size, a multiple of 2 · world.
        rank: of this process.
        world: number of training processes.
        spread: distribute a step's pair-views to the ranks in turn, so that a rank sees most images; else a
            rank takes a slice, in which the repeats of an image share one decode.
    """

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        stream: Stream,
        labels: LabelSet | None,
        *,
        soft_tau: float | None = None,
        min_margin: float = 0.0,
        batch: int,
        rank: int,
        world: int,
        spread: bool = False,
    ) -> None:
        self.split, self.recipe, self.labels = split, recipe, labels
        self.soft_tau, self.min_margin = soft_tau, min_margin
        self._slice = {"batch": batch, "rank": rank, "world": world}
        self._stream, self._spread = stream, spread
        self._maker: ViewRenderer | None = None  # built where it is used: its buffers do not travel

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maker": None}

    def units(self, step: int) -> list[PairView]:
        """The pair-views of a step."""
        if self._spread:
            step_units = self._stream.step(step, batch=self._slice["batch"], rank=0, world=1)
            return list(step_units)[self._slice["rank"] :: self._slice["world"]]
        return self._stream.step(step, **self._slice)

    def __getitem__(self, step: int) -> Batch:
        """Build the batch of a step.

        Raises:
            UserError: if stored bytes are wrong, or a view is not the one the teacher saw.
        """
        maker = self._maker = self._maker or ViewRenderer(self.split, self.recipe)
        maker.expect(*self._stream.shards_from(step, self._slice["batch"]))
        units = self.units(step)
        side = self.recipe.image_size
        views = np.empty((2 * len(units), side, side, 3), np.uint8)
        slots = [(unit.shard, row, unit.view) for unit in units for row in (unit.row_a, unit.row_b)]
        maker.views(slots, views)
        if self.labels is not None:
            for address, view in zip(slots, views, strict=True):
                self._check(self.labels, address, view)
        classes = [int(self.split.index(shard).classes[row]) for shard, row, _ in slots]
        decisions = [self.labels.decision(*address) for address in slots] if self.labels is not None else []
        soft = self.labels.soft(slots, self.soft_tau) if self.labels and self.soft_tau else None
        kept = self.labels.margins(slots) >= self.min_margin if self.labels and self.min_margin else None
        mixes, truth = maker.mixes(units), torch.tensor(classes)
        return Batch(step, torch.from_numpy(views), truth, mixes, torch.tensor(decisions), soft, kept)

    def _check(self, labels: LabelSet, address: tuple[int, int, int], view: np.ndarray) -> None:
        shard, row, number = address
        part = labels.of(shard, number)
        kept = part.signatures.get((row, number))
        if kept is not None and differs(kept, signature(view)):
            raise UserError(
                f"shard {shard}, row {row}, view {number}: is not the view the teacher saw (signatures differ); "
                f"labelled with {_versions(labels.versions)}, here {_versions(pixel_versions())}: "
                "label again, or train with the versions that labelled"
            )


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
