"""Label: a part's views through the teacher → its decisions, with signatures of a few views.

A part is a shard's block of passes. Worker processes decode each of the shard's images once and render all
views of the block; this process mixes them on the teacher's device and keeps the argmax. Batches are dealt
within a pass, so a decision does not depend on workers, blocks, or how many views are asked for.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from schemas.config import RunFile
from schemas.receipts import Made
from schemas.tables import HARD
from stages.batches import PartViews, part_batches, stack_mixes
from stages.dataset import LabelSpec, Split
from stages.evaluate import CentreCrops
from stages.loader import load
from stages.replay.decide import Decider
from stages.replay.signature import signature, signed_rows
from stages.teacher import Teacher


class Labeller:
    """Labels parts of one split with one teacher on one device; see `__call__`."""

    def __init__(self, run: RunFile, split: Split, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(os.cpu_count() or 1)  # not what the launcher left: bits may depend on it
        self.recipe, self.split, self.settings = run.views, split, run.labels
        self.crop_pct = run.evaluate.crop_pct
        self.teacher = Teacher(
            run.teacher,
            workspace=run.workspace,
            num_classes=len(split.classes),
            image_size=run.views.image_size,
            device=torch.device(device),
        )
        self.decider = Decider(run.views)

    def __call__(self, spec: LabelSpec, staging: Path) -> Made:
        """Label one part.

        Raises:
            PipelineError: if an image has changed, or a logit is not finite.
        """
        columns = {name: [np.zeros(0, np.int64)] for name in ("row", "view", "decision")}
        signatures: dict[tuple[int, int], bytes] = {}
        classes = self.split.index(spec.shard).classes.astype(np.int64)
        agreement = {"own": 0, "partner": 0, "neither": 0}
        for row_view, views, mixes in self._batches(spec):
            decision = self.teacher.logits(views, mixes).argmax(1).cpu().numpy()
            row, view = row_view[:, 0], row_view[:, 1]
            for name, values in (("row", row), ("view", view), ("decision", decision)):
                columns[name].append(values)
            _count(agreement, decision, classes[row])
            for slot, (r, v) in enumerate(row_view.tolist()):
                if r in signed_rows(v, len(classes)):
                    signatures[r, v] = signature(views[slot].numpy()).tobytes()
        path = staging / f"{spec.name}.parquet"
        rows = _write(path, spec.shard, {name: np.concatenate(blocks) for name, blocks in columns.items()}, signatures)
        facts: dict[str, Any] = {"agreement": agreement}
        if spec.first_pass == 0:
            facts["centre_crops"] = self._centre_crops(spec.shard, classes)
        return Made(files={path.name: path}, rows=rows, facts=facts)

    def _batches(self, spec: LabelSpec) -> Any:
        """The part's batches: (row, view) of each slot, int64 [B, 2]; uint8 views [B, S, S, 3]; their mixes."""
        workers, side = self.settings.workers, self.recipe.image_size
        batch = self.teacher.settings.batch_size
        source = PartViews(self.split, self.recipe, spec, batch)
        contributions = load(source, workers=workers)
        for units in part_batches(self.split, self.recipe, spec, batch):
            views = torch.empty((2 * len(units), side, side, 3), dtype=torch.uint8)
            for _ in range(max(workers, 1)):
                slots, made = next(contributions)
                views[slots] = made
            row_view = np.array([(row, unit.view) for unit in units for row in (unit.row_a, unit.row_b)], np.int64)
            yield row_view, views, stack_mixes([self.decider.mix(u.shard, u.pair, u.view) for u in units])

    def _centre_crops(self, shard: int, classes: np.ndarray) -> dict[str, int]:
        """The teacher on the shard's unmixed centre crops: how many it gets right."""
        crops = CentreCrops(self.split, self.recipe.image_size, self.crop_pct, self.teacher.settings.batch_size, shard)
        correct = 0
        for views, truth in load(crops, workers=self.settings.workers, order=range(len(crops))):
            correct += int((self.teacher.logits(views, None).argmax(1).cpu() == truth).sum())
        return {"correct": correct, "images": len(classes)}


def _count(agreement: dict[str, int], decision: np.ndarray, own: np.ndarray) -> None:
    partner = own.reshape(-1, 2)[:, ::-1].ravel()
    is_own, is_partner = decision == own, (decision == partner) & (decision != own)
    agreement["own"] += int(is_own.sum())
    agreement["partner"] += int(is_partner.sum())
    agreement["neither"] += int((~is_own & ~is_partner).sum())


def _write(path: Path, shard: int, columns: dict[str, np.ndarray], signatures: dict[tuple[int, int], bytes]) -> int:
    """Write decisions sorted by row, then view, which compresses best; return their number."""
    order = np.lexsort((columns["view"], columns["row"]))
    row, view = columns["row"][order], columns["view"][order]
    signed = [signatures.get(address) for address in zip(row.tolist(), view.tolist(), strict=True)]
    table = pa.table(
        {
            "shard": pa.array(np.full(len(row), shard), pa.uint32()),
            "row": pa.array(row, pa.uint32()),
            "view": pa.array(view, pa.uint16()),
            "decision": pa.array(columns["decision"][order], pa.uint16()),
            "signature": pa.array(signed, HARD.field("signature").type),
        },
        schema=HARD,
    )
    pq.write_table(table, path, compression="zstd", compression_level=9)
    return len(table)
