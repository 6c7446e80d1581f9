"""Label: a part's views through the teacher → its decisions, with signatures of a few views.

A part is a shard's block of passes. Worker processes decode each of the shard's images once and render all
views of the block; this process mixes them on the teacher's device and keeps the argmax. Batches are dealt
within a pass, so a decision does not depend on workers, blocks, or the number of views.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.receipts import PartOutput
from stages.data.center_crop import centre_crops
from stages.data.image_set import ShardedImageSet
from stages.data.loader import Loader, moved, on_device, one_late, pinned
from stages.data.split import Split
from stages.data.views import stack_mixes
from stages.label.dataset import Contribution, LabelDataset, part_batches
from stages.label.encoding import keep
from stages.label.label_file import Signatures, write_labels
from stages.label.label_set import LabelSpec
from stages.label.margins import histogram, near_tie
from stages.models.teacher import Teacher
from stages.replay.decide import Decider
from stages.replay.draws import Draws, Purpose
from stages.replay.mix import Mix


class TeacherOutput(NamedTuple):
    """A teacher's outputs for a part's N views.

    Attributes:
        columns: of the part's file, in the order of the batches.
        signatures: of a few views, by (row, view).
        margins: float32 [N].
        near_ties: which are within rounding of a tie, bool [N].
    """

    columns: dict[str, np.ndarray]
    signatures: Signatures
    margins: np.ndarray
    near_ties: np.ndarray


class PartBatch(NamedTuple):
    """A batch of a part, on the teacher's device.

    Attributes:
        row_view: of each view, int64 [B, 2], in host memory.
        views: uint8 [B, S, S, 3].
        mixes: how neighbours are mixed.
        signatures: of those views that carry one, by (row, view).
    """

    row_view: np.ndarray
    views: Tensor
    mixes: Mix
    signatures: Signatures


class Labeller:
    """Labels parts of one split with one teacher on one device; see `__call__`."""

    def __init__(self, config: RunFile, split: Split, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(os.cpu_count() or 1)  # not what the launcher left: bits may depend on it
        self.recipe, self.split, self.settings = config.views, split, config.labels
        self.classes, self.tau, self.crop_pct = len(split.classes), config.train.tau, config.evaluate.crop_pct
        self.teacher = Teacher(
            config.teacher,
            workspace=config.workspace,
            num_classes=self.classes,
            image_size=config.views.image_size,
            device=torch.device(device),
        )
        self.decider = Decider(config.views)
        self._sampling = Draws(config.views.seed, Purpose.SAMPLE)
        self._views = LabelDataset(split, config.views, self.teacher.settings.batch_size)
        self._idle: list[Loader] = []
        """Data processes that no part has at present."""
        self._asking = threading.Lock()
        """Held by the part whose views the teacher sees; others may be read, or written, beside it."""

    def __call__(self, spec: LabelSpec, staging: Path) -> PartOutput:
        """Label one part. Two threads may each label one: one part's data processes start while the other is decided.

        Raises:
            UserError: if an image has changed, or a logit is not finite.
        """
        said = self.decide(spec)
        path = staging / f"{spec.name}.parquet"
        write_labels(path, self.settings.store, spec.shard, said.columns, said.signatures)
        classes = self.split.index(spec.shard).classes.astype(np.int64)
        facts: dict[str, Any] = {
            "agreement": _agreement(said.columns["decision"], classes[said.columns["row"]]),
            "margins": histogram(said.margins),
            "near_ties": int(said.near_ties.sum()),
        }
        if spec.first_pass == 0:
            facts["centre_crops"] = self._centre_crops(spec.shard, classes)
        if self.teacher.batch:
            facts["forward_batch"] = self.teacher.batch  # memory did not suffice for the full batch
        return PartOutput(files={path.name: path}, rows=len(said.margins), facts=facts)

    def decide(self, spec: LabelSpec) -> TeacherOutput:
        """The teacher's outputs for one part; partners are neighbours.

        Raises:
            UserError: if an image has changed, or a logit is not finite.
        """
        nothing = self._answers(torch.zeros((0, self.classes)), spec.shard, np.zeros((0, 2), np.int64))
        empty = {name: values.numpy() for name, values in nothing.items()}
        found = [{"row": np.zeros(0, np.int64), "view": np.zeros(0, np.int64)} | empty]
        signatures: dict[tuple[int, int], bytes] = {}
        batches = self.batches(spec)
        with self._asking:
            asked = (
                (one, self._answers(self.teacher.queued(one.views, one.mixes), spec.shard, one.row_view))
                for one in batches
            )
            for batch, answers in one_late(asked):
                self.teacher.refuse_not_finite(bool(answers["finite"].all()))
                if not answers["fits"].all():
                    raise UserError('a logit is beyond 65504, the largest 16-bit number; set labels.store = "hard"')
                row, view = batch.row_view.T
                found.append({"row": row, "view": view} | {name: one.numpy() for name, one in answers.items()})
                signatures |= batch.signatures
        columns = {name: np.concatenate([block[name] for block in found]) for name in found[0]}
        margins, near_ties, *_ = (columns.pop(name) for name in ("margin", "near_tie", "finite", "fits"))
        return TeacherOutput(columns, signatures, margins, near_ties)

    def _answers(self, logits_BK: Tensor, shard: int, row_view_B2: np.ndarray) -> dict[str, Tensor]:
        """What is stored of a batch, by column; of each view its margin, whether that is a near tie, and two checks."""
        margin, near = near_tie(logits_BK, self.teacher.settings.precision)
        hard, sampled = self.settings.store == "hard", self.settings.store == "sampled"
        kept = keep(logits_BK, self.settings, self.tau, self._offsets(shard, row_view_B2) if sampled else None)
        checks = {
            "finite": torch.isfinite(logits_BK).all(1),
            "fits": torch.ones_like(near) if hard else torch.isfinite(logits_BK.half()).all(1),
        }
        return kept | checks | {"margin": margin, "near_tie": near}

    def _offsets(self, shard: int, row_view_B2: np.ndarray) -> Tensor:
        """Where the samples of each view begin, uniform by its address: float64 [B]."""
        found = [self._sampling.at(shard, row, view).uniform() for row, view in row_view_B2.tolist()]
        return torch.tensor(found, dtype=torch.float64)

    def batches(self, spec: LabelSpec) -> Iterator[PartBatch]:
        """The part's batches on the teacher's device; data processes start at once.

        On a GPU the views are copied and arranged there while the previous batch is computed.
        """
        shares = max(self.settings.processes, 1)
        loader = self._idle.pop() if self._idle else self._new_loader()
        made = on_device(loader.items(self._views.order(spec, shares)), self.teacher.device)
        return self._gathered(spec, made, shares, loader)

    def _new_loader(self) -> Loader:
        pin, preload = self.teacher.device.type == "cuda", (LabelDataset.__module__,)
        return Loader(self._views, workers=self.settings.processes, pin=pin, preload=preload)

    def _gathered(
        self, spec: LabelSpec, contributions: Iterator[Contribution], each: int, loader: Loader
    ) -> Iterator[PartBatch]:
        """A part's batches, of as many contributions each; at its end another part may have the loader."""
        side, device = self.recipe.image_size, self.teacher.device
        for units in part_batches(self.split, self.recipe, spec, self.teacher.settings.batch_size):
            views = torch.empty((2 * len(units), side, side, 3), dtype=torch.uint8, device=device)
            signatures: dict[tuple[int, int], bytes] = {}
            for _ in range(each):
                part = next(contributions)
                views[part.slots] = part.views
                signatures |= part.signatures
            row_view = np.array([(row, unit.view) for unit in units for row in (unit.row_a, unit.row_b)], np.int64)
            mixes = stack_mixes([self.decider.mix(u.shard, u.pair, u.view) for u in units])
            mixes = moved(pinned(mixes) if device.type == "cuda" else mixes, device)
            yield PartBatch(row_view, views, mixes, signatures)
        next(contributions, None)  # the order's end
        self._idle.append(loader)

    def _centre_crops(self, shard: int, classes: np.ndarray) -> dict[str, int]:
        """The teacher on the shard's unmixed centre crops: how many it gets right."""
        crops = centre_crops(
            ShardedImageSet(self.split, "train"),
            shard,
            image_size=self.recipe.image_size,
            crop_pct=self.crop_pct,
            batch=self.teacher.settings.batch_size,
            threads=self.settings.processes,
        )
        correct = 0
        for views, truth, _ in crops:
            with self._asking:
                logits = self.teacher.logits(views, None)
            correct += int((logits.argmax(1).cpu() == truth).sum())
        return {"correct": correct, "images": len(classes)}


def _agreement(decision: np.ndarray, own: np.ndarray) -> dict[str, int]:
    """Whose class is named how often; partners are neighbours."""
    partner = own.reshape(-1, 2)[:, ::-1].ravel()
    is_own, is_partner = decision == own, (decision == partner) & (decision != own)
    counts = {"own": is_own, "partner": is_partner, "neither": ~is_own & ~is_partner}
    return {name: int(those.sum()) for name, those in counts.items()}
