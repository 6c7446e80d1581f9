"""The label set as its readers see it: which part holds a view, and what the teacher said of it.

A part is a shard's block of passes; its file is proven against its receipt before it is used. Kept apart from the
split, which knows images and no teacher.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.config import AUTO, RunFile
from schemas.errors import UserError
from schemas.receipts import StoredFile, fingerprint, require_unchanged
from stages.data.split import Split
from stages.label.encoding import probabilities
from stages.label.label_file import read_labels
from stages.shard.plan import shard_name
from stages.storage.commit import PLAN, RECEIPTS, read_checked, read_manifest, read_receipt
from stages.storage.store import Store


class SoftLabels(NamedTuple):
    """A teacher's distributions, as a label set keeps them.

    Attributes:
        logits: of all K classes in their order, shape (B, K), or of k of them, shape (B, k).
        classes: which k, int64 of shape (B, k); None = all.
        log_sum_exp: over all K classes, of logits / tau, float32 of shape (B,); None = all logits are there.
    """

    logits: Tensor
    classes: Tensor | None
    log_sum_exp: Tensor | None

    def map(self, do: Callable[[Tensor], Tensor]) -> "SoftLabels":
        """The same with something done to each tensor."""
        return SoftLabels(do(self.logits), *(one if one is None else do(one) for one in self[1:]))


@dataclass(frozen=True, slots=True)
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
    """What the teacher said in one part.

    Attributes:
        first_view: of the part.
        place: where in the columns (row, view - first_view) is, int32; -1 where a sample sat out.
        columns: of the file.
        signatures: by (row, view).
    """

    first_view: int
    place: np.ndarray
    columns: dict[str, np.ndarray]
    signatures: dict[tuple[int, int], np.ndarray]


class LabelSet:
    """A label set's decisions by address (shard, row, view). Picklable; keeps a few parts in memory.

    Args:
        store: of the label set's folder.
        about: the manifest of its label stage, or its plan for who follows.
        rows: samples in each shard.
        repeats: views in a pass.
        follow: passes that will be labelled; 0 = what the manifest lists is all.

    Attributes:
        versions: of the libraries that touched the labelled pixels, for messages.
        made_by: the set's identity.
    """

    def __init__(
        self, store: Store, about: dict[str, Any], rows: tuple[int, ...], repeats: int, follow: int = 0
    ) -> None:
        self.store, self.rows, self.repeats, self._follow = store, rows, repeats, follow
        self.versions: dict[str, str] = about["versions"]
        self.made_by = fingerprint(about["made_from"])
        self.store_of: Any = about["made_from"]["store"]
        self._files: dict[tuple[int, int], tuple[LabelSpec, StoredFile]] = {}
        self._seen: set[str] = set()
        for part in about.get("parts", []):
            self._add(part["part"], StoredFile(**part["files"][0]))
        self._remember()

    @classmethod
    def open(cls, run: RunFile, split: Split) -> "LabelSet":
        """Open the run file's label set, if it is whole and belongs to this split, recipe and teacher.

        Raises:
            UserError: if it is not whole.
            MismatchError: if it was made for others, naming every difference.
        """
        store = Store(run.workspace).at(f"labels/{run.labels.name}")
        manifest = read_manifest(store)
        if manifest is None:
            raise UserError(
                f"{store}: label set {run.labels.name} is not whole yet; run `deit-pipeline label-teacher`, or train "
                f"with --follow while that runs{_others(run)}"
            )
        _refuse_others(store, manifest["made_from"], run, split)
        return cls(store, manifest, split.rows, run.views.repeats)

    @classmethod
    def follow(cls, run: RunFile, split: Split) -> "LabelSet":
        """Open the run file's label set while it is being made; waits for its first part.

        Every pass of the run file's `labels.views` counts as there; who asks for one that is not waits for its receipt.

        Raises:
            MismatchError: if it is being made for another split, recipe or teacher, naming every difference.
        """
        store = Store(run.workspace).at(f"labels/{run.labels.name}")
        waiting = _Waiting(f"{store}: its first part")
        while not store.files(RECEIPTS):  # until then the plan binds nobody
            waiting.sleep()
        plan = read_manifest(store, PLAN)
        if plan is None:
            raise UserError(f"{store.name(PLAN)}: is missing; run `deit-pipeline label-teacher`")
        _refuse_others(store, plan["made_from"], run, split)
        return cls(store, plan, split.rows, run.views.repeats, run.labels.views // run.views.repeats)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_part"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember()

    def _remember(self) -> None:
        self._part = lru_cache(256 if self.store_of == "hard" else 32)(self._read_part)

    @property
    def passes(self) -> int:
        """Leading passes that are labelled for every shard, or will be for who follows."""
        done = self._follow
        while all((shard, done) in self._files for shard in range(len(self.rows))):
            done += 1
        return done

    def of(self, shard: int, view: int) -> PartLabels:
        """The part that holds a shard's view; who follows waits until it is there.

        Raises:
            UserError: if it was never to be made, or its bytes are wrong.
        """
        address = shard, view // self.repeats
        if self._follow > address[1]:
            self._wait_for(address)
        return self._part(*self._files[address])

    def decision(self, shard: int, row: int, view: int) -> int:
        """The teacher's class for the mixed view of a sample.

        Raises:
            UserError: if the part holds none.
        """
        part, place = self._find(shard, row, view)
        return int(part.columns["decision"][place])

    def decisions(self, shard: int, view: int) -> np.ndarray:
        """The classes for a view of all of a shard's samples, int64 [rows]; -1 where one sat out."""
        part = self.of(shard, view)
        place = part.place[:, view - part.first_view]
        return np.where(place < 0, -1, np.append(part.columns["decision"], 0)[place].astype(np.int64))

    def refuse_soft(self, tau: float) -> None:
        """Check that the set keeps the teacher's probabilities at a temperature.

        Raises:
            UserError: if it does not.
        """
        if self.store_of == "hard":
            raise UserError(
                f'train.distillation = "soft": {self.store} keeps classes alone; label with labels.store = "compact", '
                '"topk" or "full" under another labels.name, or set train.distillation = "hard"'
            )
        if self.store_of == "full":
            return
        own = self.store_of["tau"]
        kept = [own] if self.store_of["kind"] == "sampled" or own == 1 else [own, 1.0]
        if tau not in kept:
            raise UserError(
                f"train.tau = {tau:g}: {self.store} is normalised for {' and '.join(f'{one:g}' for one in kept)}; set "
                "train.tau to that, or label again under another labels.name"
            )

    def soft(self, addresses: Sequence[tuple[int, int, int]], tau: float) -> SoftLabels:
        """The teacher's distributions for the mixed views of samples (shard, row, view).

        Raises:
            UserError: if a part holds none.
        """
        found = [self._find(*address) for address in addresses]
        logits = self._stacked("logits", found)
        if self.store_of == "full":
            return SoftLabels(logits, None, None)
        normaliser = self._stacked("lse_tau" if tau == self.store_of["tau"] else "lse_1", found)
        return SoftLabels(logits, self._stacked("classes", found).long(), normaliser)

    def refuse_margins(self, least: float) -> None:
        """Check that the set keeps each decision's margin.

        Raises:
            UserError: if it does not.
        """
        kind = self.store_of if isinstance(self.store_of, str) else self.store_of["kind"]
        if kind in ("hard", "sampled") or (kind != "full" and self.store_of["k"] < 2):
            raise UserError(
                f"train.min_margin = {least:g}: {self.store} keeps no margins; label with labels.store = "
                '"compact", "topk" or "full", and labels.topk of 2 or more, under another labels.name, or set '
                "train.min_margin = 0"
            )

    def margins(self, addresses: Sequence[tuple[int, int, int]]) -> Tensor:
        """The largest logit less the second for the mixed views of samples (shard, row, view), float32 [B].

        Raises:
            UserError: if a part holds none.
        """
        logits_BK = self._stacked("logits", [self._find(*address) for address in addresses])
        top_B2 = logits_BK.float().topk(2, dim=1).values
        return top_B2[:, 0] - top_B2[:, 1]

    def _stacked(self, name: str, found: Sequence[tuple[PartLabels, int]]) -> Tensor:
        return torch.from_numpy(np.stack([part.columns[name][place] for part, place in found]))

    def _wait_for(self, address: tuple[int, int]) -> None:
        waiting = _Waiting(f"{self.store}: pass {address[1]} of shard {address[0]}")
        while address not in self._files:
            self._look()
            if address not in self._files:
                waiting.sleep()

    def _look(self) -> None:
        """Take up the parts whose receipts have come since; those of another identity are not of this set."""
        for name in sorted(self.store.files(RECEIPTS).keys() - self._seen):
            self._seen.add(name)
            receipt = read_receipt(self.store, name.removesuffix(".json"))
            if receipt.made_by == self.made_by:
                self._add(receipt.part, receipt.files[0])

    def _add(self, part: str, file: StoredFile) -> None:
        spec = LabelSpec.parse(part)
        for pass_ in range(spec.first_pass, spec.end_pass):
            self._files[spec.shard, pass_] = spec, file

    def _find(self, shard: int, row: int, view: int) -> tuple[PartLabels, int]:
        part = self.of(shard, view)
        place = int(part.place[row, view - part.first_view])
        if place < 0:
            raise UserError(f"{self.store}: no decision for shard {shard}, row {row}, view {view}; label again")
        return part, place

    def _read_part(self, spec: LabelSpec, file: StoredFile) -> PartLabels:
        columns, signatures = read_labels(read_checked(self.store, file))
        if isinstance(self.store_of, dict) and self.store_of["kind"] != "topk":
            columns = probabilities(columns, self.store_of["kind"], self.store_of["tau"])
        first = spec.first_pass * self.repeats
        place = np.full((self.rows[spec.shard], (spec.end_pass - spec.first_pass) * self.repeats), -1, np.int32)
        place[columns["row"], columns["view"].astype(np.int64) - first] = np.arange(len(columns["row"]))
        kept = {name: columns[name] for name in columns if name not in ("shard", "row", "view")}
        return PartLabels(first, place, kept, {at: np.frombuffer(one, np.uint8) for at, one in signatures.items()})


class _Waiting:
    """Sleeps, longer each time, and says once for what."""

    def __init__(self, what: str) -> None:
        self._what, self._seconds = what, 0.25

    def sleep(self) -> None:
        if self._seconds == 1.0:
            print(f"waiting for {self._what}; `deit-pipeline label-teacher` makes it", file=sys.stderr, flush=True)
        time.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, 10.0)


def _others(run: RunFile) -> str:
    """The label sets that are there instead of the run file's."""
    names = [name for name in Store(run.workspace).at("labels").folders() if name != run.labels.name]
    return f"; or name one that is there: labels.name = {' or '.join(names)}" if names else ""


def _refuse_others(store: Store, made_from: dict[str, Any], run: RunFile, split: Split) -> None:
    wanted = made_from | {"shards": split.content, "recipe": run.views.model_dump(mode="json")}
    settled = {key: value for key, value in run.teacher.identity().items() if value != AUTO}
    wanted["teacher"] = made_from["teacher"] | settled
    require_unchanged(str(store), made_from, wanted, "label again under another labels.name, or restore the run file")
