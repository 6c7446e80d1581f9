"""All views of a part of a label set, batch by batch, for the teacher.

Labelling reads complete parts: every data worker decodes its own rows once and makes all their views of the part.

Legend: S side of a view.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from schemas.recipe import Recipe
from stages.data.split import Split
from stages.data.views import ViewRenderer
from stages.label.label_set import LabelSpec
from stages.replay.order import PairView, pairing
from stages.replay.signature import signature, signed_rows

KEPT_BYTES = 768 << 20
"""Decoded images that a process keeps throughout a part: 1,300 photographs of 500 x 400 pixels."""


class Contribution(NamedTuple):
    """What one data process made of a batch.

    Attributes:
        slots: of the batch, int64 [n].
        views: in these slots, uint8 [n, S, S, 3].
        signatures: of those that a label set signs, 48 bytes by (row, view).
    """

    slots: Tensor
    views: Tensor
    signatures: dict[tuple[int, int], bytes]


class Share(NamedTuple):
    """A data process's share in a batch of a part: the rows whose number leaves `share` when divided by `shares`."""

    spec: LabelSpec
    batch: int
    share: int
    shares: int


class LabelDataset(Dataset[Contribution]):
    """The views of parts, share by share. A process that makes a part's shares in order decodes each image once."""

    def __init__(self, split: Split, recipe: Recipe, batch: int) -> None:
        self.split, self.recipe, self.batch = split, recipe, batch
        self._spec: LabelSpec | None = None
        self._batches: list[list[PairView]] = []
        self._maker: ViewRenderer | None = None

    def order(self, spec: LabelSpec, shares: int) -> list[Share]:
        """All of a part, batch by batch, each in as many shares as there are processes."""
        count = sum(1 for _ in part_batches(self.split, self.recipe, spec, self.batch))
        return [Share(spec, batch, share, shares) for batch in range(count) for share in range(shares)]

    def __getitem__(self, wanted: Share) -> Contribution:
        """Make one share.

        Raises:
            UserError: as `ViewRenderer.views`.
        """
        maker, side = self._open(wanted.spec), self.recipe.image_size
        rows = [
            (unit.shard, row, unit.view) for unit in self._batches[wanted.batch] for row in (unit.row_a, unit.row_b)
        ]
        slots = [slot for slot, (_, row, _) in enumerate(rows) if row % wanted.shares == wanted.share]
        views = np.empty((len(slots), side, side, 3), np.uint8)
        maker.views([rows[slot] for slot in slots], views)
        signatures = self._signatures(wanted.spec.shard, [rows[slot][1:] for slot in slots], views)
        return Contribution(torch.tensor(slots, dtype=torch.int64), torch.from_numpy(views), signatures)

    def _open(self, spec: LabelSpec) -> ViewRenderer:
        """What makes a part's views; the images of the part before are let go."""
        if self._maker is None or spec != self._spec:
            self._spec, self._batches = spec, list(part_batches(self.split, self.recipe, spec, self.batch))
            self._maker = ViewRenderer(self.split, self.recipe, KEPT_BYTES)
        return self._maker

    def _signatures(
        self, shard: int, row_views: list[tuple[int, int]], views: np.ndarray
    ) -> dict[tuple[int, int], bytes]:
        rows, made = self.split.rows[shard], zip(row_views, views, strict=True)
        return {(row, view): signature(one).tobytes() for (row, view), one in made if row in signed_rows(view, rows)}


def part_batches(split: Split, recipe: Recipe, spec: LabelSpec, batch: int) -> Iterator[list[PairView]]:
    """A part's pair-views in the batches the teacher sees them in; passes do not share batches.

    So the batches of a pass, and with them the bits of its decisions, do not depend on how passes form parts.
    """
    for pass_ in range(spec.first_pass, spec.end_pass):
        pairs = pairing(recipe.seed, spec.shard, pass_, split.rows[spec.shard]).tolist()
        first = pass_ * recipe.repeats
        units = [
            PairView(spec.shard, pair, first + repeat, row_a, row_b)
            for pair, (row_a, row_b) in enumerate(pairs)
            for repeat in range(recipe.repeats)
        ]
        for start in range(0, len(units), batch // 2):
            yield units[start : start + batch // 2]
