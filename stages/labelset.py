"""The label set as its readers see it: which part holds a view, and what the teacher said of it.

A part is a shard's block of passes; its file is proven against its receipt before it is used. Kept apart from the
split, which knows images and no teacher.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from schemas.config import RunFile, Teacher
from schemas.errors import PipelineError
from schemas.receipts import StoredFile, refuse_changes
from schemas.tables import SIGNATURE_BYTES
from stages.dataset import Split
from stages.shard import shard_name
from stages.store import Store, read_checked, read_manifest


@dataclass(frozen=True)
class LabelSpec:
    """One part of a label set: a shard's passes [first_pass, end_pass)."""

    shard: int
    first_pass: int
    end_pass: int

    @property
    def name(self) -> str:
        """The part's name, which `parse` reads again."""
        return f"{shard_name(self.shard)}.passes-{self.first_pass:05d}-{self.end_pass:05d}"

    @classmethod
    def parse(cls, name: str) -> "LabelSpec":
        """The spec that has this name."""
        shard, _, passes = name.partition(".passes-")
        first, _, end = passes.partition("-")
        return cls(int(shard.removeprefix("shard-")), int(first), int(end))


@dataclass(frozen=True)
class PartLabels:
    """The decisions of one part: dense over (row, view - first_view); -1 where a sample sat out."""

    first_view: int
    decisions: np.ndarray
    signatures: dict[tuple[int, int], np.ndarray]


class LabelSet:
    """A label set's decisions by address (shard, row, view). Picklable; keeps a few parts in memory.

    Args:
        store: of the label set's folder.
        manifest: of its label stage.
        rows: samples in each shard.
        repeats: views in a pass.

    Attributes:
        versions: of the libraries that touched the labelled pixels, for messages.
        made_by: the set's identity.
    """

    def __init__(self, store: Store, manifest: dict[str, Any], rows: tuple[int, ...], repeats: int) -> None:
        self.store, self.rows, self.repeats = store, rows, repeats
        self.versions: dict[str, str] = manifest["versions"]
        self.made_by: str = manifest["made_by"]
        self._files: dict[tuple[int, int], tuple[LabelSpec, StoredFile]] = {}
        for part in manifest["parts"]:
            spec = LabelSpec.parse(part["part"])
            for pass_ in range(spec.first_pass, spec.end_pass):
                self._files[spec.shard, pass_] = spec, StoredFile(**part["files"][0])
        self._part = lru_cache(256)(self._read_part)

    @classmethod
    def open(cls, run: RunFile, split: Split) -> "LabelSet":
        """Open the run file's label set, if it is whole and belongs to this split, recipe and teacher.

        Raises:
            PipelineError: if it is not whole.
            Mismatch: if it was made for others, naming every difference.
        """
        store = Store(run.workspace).at(f"labels/{run.labels.name}")
        manifest = read_manifest(store)
        if manifest is None:
            raise PipelineError(
                f"{store}: label set {run.labels.name} is not whole yet; run `deit-pipeline label-teacher`"
            )
        made_from = manifest["made_from"]
        wanted = made_from | {"shards": split.content, "recipe": run.views.model_dump(mode="json")}
        wanted["teacher"] = made_from["teacher"] | teacher_settings(run.teacher)
        refuse_changes(str(store), made_from, wanted, "label again under another labels.name, or restore the run file")
        return cls(store, manifest, split.rows, run.views.repeats)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_part"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._part = lru_cache(256)(self._read_part)

    @property
    def passes(self) -> int:
        """Leading passes that are labelled for every shard."""
        done = 0
        while all((shard, done) in self._files for shard in range(len(self.rows))):
            done += 1
        return done

    def of(self, shard: int, view: int) -> PartLabels:
        """The part that holds a shard's view."""
        return self._part(*self._files[shard, view // self.repeats])

    def decision(self, shard: int, row: int, view: int) -> int:
        """The teacher's class for the mixed view of a sample.

        Raises:
            PipelineError: if the part holds none.
        """
        part = self.of(shard, view)
        decision = int(part.decisions[row, view - part.first_view])
        if decision < 0:
            raise PipelineError(f"{self.store}: no decision for shard {shard}, row {row}, view {view}; label again")
        return decision

    def _read_part(self, spec: LabelSpec, file: StoredFile) -> PartLabels:
        table = pq.read_table(io.BytesIO(read_checked(self.store, file)))
        first = spec.first_pass * self.repeats
        row, view = table["row"].to_numpy(), table["view"].to_numpy().astype(np.int64) - first
        decisions = np.full((self.rows[spec.shard], (spec.end_pass - spec.first_pass) * self.repeats), -1, np.int32)
        decisions[row, view] = table["decision"].to_numpy()
        signed = table.filter(table["signature"].is_valid())
        signatures = {
            (int(r), int(v)): np.frombuffer(s, np.uint8)
            for r, v, s in zip(
                signed["row"].to_pylist(), signed["view"].to_pylist(), signed["signature"].to_pylist(), strict=True
            )
            if len(s) == SIGNATURE_BYTES
        }
        return PartLabels(first, decisions, signatures)


def teacher_settings(teacher: Teacher) -> dict[str, Any]:
    """The part of a teacher's identity that the run file says; its weights say the rest."""
    return {
        "model": teacher.model,
        "extra": teacher.extra,
        "precision": teacher.precision,
        "batch_size": teacher.batch_size,
    }
