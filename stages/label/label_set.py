"""The label set as its readers see it: which part holds a view, and the teacher's outputs for it.

A part is a shard's block of passes; its file is proven against its receipt before it is used. Kept apart from the
split, which knows images and no teacher.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.label_identity import LabelIdentity, Sampled, TopK
from schemas.manifests import LabelManifest
from schemas.parts import ManifestPart
from schemas.plan import Plan
from schemas.receipts import StoredFile, require_unchanged
from schemas.values import AUTO
from stages.data.split import Split
from stages.label.encoding import probabilities
from stages.label.label_file import read_labels
from stages.label.soft_labels import SoftLabels
from stages.label.waiting import Waiting
from stages.shard.plan import shard_name
from stages.storage.commit import MANIFEST, PLAN, RECEIPTS, read_checked, read_plan, read_receipt, receipt_names
from stages.storage.manifest import open_manifest
from stages.storage.store import Store


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
    """The teacher's outputs of one part.

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
        parts: those that the manifest lists.
        rows: samples in each shard.
        repeats: views in a pass.
        follow: passes that will be labelled; 0 = what the manifest lists is all.

    Attributes:
        versions: of the libraries that touched the labelled pixels, for messages.
        identity: what the set is made from.
        made_by: its fingerprint.
    """

    def __init__(
        self,
        store: Store,
        about: LabelManifest | Plan,
        parts: Iterable[ManifestPart],
        rows: tuple[int, ...],
        repeats: int,
        follow: int = 0,
    ) -> None:
        self.store, self.rows, self.repeats, self._follow = store, rows, repeats, follow
        self.versions, self.made_by = about.versions, about.made_by
        self.identity = LabelIdentity.of(about.made_from, str(store))
        self._files: dict[tuple[int, int], tuple[LabelSpec, StoredFile]] = {}
        self._seen: set[str] = set()
        for part in parts:
            self._add(part.part, part.files)
        self._remember()

    @classmethod
    def open(cls, config: RunFile, split: Split) -> "LabelSet":
        """Open the run file's label set, if it is complete and belongs to this split, recipe and teacher.

        Raises:
            UserError: if it is incomplete.
            MismatchError: if it was made for others, naming every difference.
        """
        store = Store(config.workspace).child(f"labels/{config.labels.name}")
        found = open_manifest(store, LabelManifest)
        if found is None:
            raise UserError(
                f"{store}: label set {config.labels.name} is not whole yet; run `deit-pipeline label-teacher`, or "
                f"train with --follow while that runs{_others(config)}"
            )
        labels = cls(store, found.manifest, found.parts, split.rows, config.views.repeats)
        _refuse_others(store, labels.identity, config, split)
        labels.refuse_gaps(found.manifest.views)
        return labels

    @classmethod
    def follow(cls, config: RunFile, split: Split) -> "LabelSet":
        """Open the run file's label set while it is being made; waits for its first part.

        Every pass of the run file's `labels.views` counts as present; a reader of a missing pass waits for its receipt.

        Raises:
            MismatchError: if it is being made for another split, recipe or teacher, naming every difference.
        """
        store = Store(config.workspace).child(f"labels/{config.labels.name}")
        waiting = Waiting(f"{store}: its first part")
        while not receipt_names(store):  # until then the plan binds nobody
            waiting.sleep()
        plan = read_plan(store)
        if plan is None:
            raise UserError(f"{store.display_path(PLAN)}: is missing; run `deit-pipeline label-teacher`")
        labels = cls(store, plan, (), split.rows, config.views.repeats, config.labels.views // config.views.repeats)
        _refuse_others(store, labels.identity, config, split)
        return labels

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_part"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember()

    def _remember(self) -> None:
        self._part = lru_cache(256 if self.identity.kind == "hard" else 32)(self._read_part)

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
        store = self.identity.store
        if store == "hard":
            raise UserError(
                f'train.distillation = "soft": {self.store} keeps classes alone; label with labels.store = "compact", '
                '"topk" or "full" under another labels.name, or set train.distillation = "hard"'
            )
        if isinstance(store, str):
            return
        kept = [store.tau] if isinstance(store, Sampled) or store.tau == 1 else [store.tau, 1.0]
        if tau not in kept:
            raise UserError(
                f"train.tau = {tau:g}: {self.store} is normalised for {' and '.join(f'{one:g}' for one in kept)}; set "
                "train.tau to that, or label again under another labels.name"
            )

    def lost_mass(self, tau: float) -> float:
        """The mean share of the teacher's probability at a temperature outside the stored logits, in a part."""
        store = self.identity.store
        if not isinstance(store, TopK) or not self._files:
            return 0.0
        columns = self._part(*next(iter(self._files.values()))).columns
        log_sums = columns["lse_tau" if tau == store.tau else "lse_1"][:, None]
        kept = np.exp(columns["logits"].astype(np.float32) / tau - log_sums).sum(1)
        return float(1 - kept.mean())

    def warning_of_lost_mass(self, tau: float) -> str:
        """A warning if more than a tenth of the probability is outside the stored logits; else ""."""
        store = self.identity.store
        if not isinstance(store, TopK) or (lost := self.lost_mass(tau)) <= 0.1:
            return ""
        return (
            f"warning: {lost:.0%} of the teacher's probability at train.tau = {tau:g} lies outside the "
            f'{store.k} logits that {self.store} keeps; label with labels.store = "full" under another '
            "labels.name, or raise labels.topk there"
        )

    def soft(self, addresses: Sequence[tuple[int, int, int]], tau: float) -> SoftLabels:
        """The teacher's distributions for the mixed views of samples (shard, row, view).

        Raises:
            UserError: if a part holds none.
        """
        found = [self._find(*address) for address in addresses]
        logits = self._stacked("logits", found)
        store = self.identity.store
        if isinstance(store, str):
            return SoftLabels(logits, None, None)
        normaliser = self._stacked("lse_tau" if tau == store.tau else "lse_1", found)
        return SoftLabels(logits, self._stacked("classes", found).long(), normaliser)

    def refuse_margins(self, least: float) -> None:
        """Check that the set keeps each decision's margin.

        Raises:
            UserError: if it does not.
        """
        store = self.identity.store
        if store == "hard" or isinstance(store, Sampled) or (isinstance(store, TopK) and store.k < 2):
            raise UserError(
                f"train.min_margin = {least:g}: {self.store} keeps no margins; label with labels.store = "
                '"compact", "topk" or "full", and labels.topk of 2 or more, under another labels.name, or set '
                "train.min_margin = 0"
            )

    def margins(self, addresses: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """The largest logit less the second for the mixed views of samples (shard, row, view), float32 [B].

        Raises:
            UserError: if a part holds none.
        """
        logits_BK = self._stacked("logits", [self._find(*address) for address in addresses])
        top_B2 = logits_BK.float().topk(2, dim=1).values
        return top_B2[:, 0] - top_B2[:, 1]

    def _stacked(self, name: str, found: Sequence[tuple[PartLabels, int]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([part.columns[name][place] for part, place in found]))

    def _wait_for(self, address: tuple[int, int]) -> None:
        waiting = Waiting(f"{self.store}: pass {address[1]} of shard {address[0]}")
        while address not in self._files:
            self._look()
            if address not in self._files:
                waiting.sleep()

    def _look(self) -> None:
        """Take up the parts whose receipts have come since; those of another identity are not of this set."""
        for part in sorted(set(receipt_names(self.store)) - self._seen):
            self._seen.add(part)
            receipt = read_receipt(self.store, part)
            if receipt.made_by == self.made_by:
                self._add(receipt.part, receipt.files)

    def refuse_gaps(self, views: int) -> None:
        """Check that each shard has all passes of so many views.

        Raises:
            UserError: naming the first that is missing.
        """
        for shard in range(len(self.rows)):
            for pass_ in range(views // self.repeats):
                if (shard, pass_) not in self._files:
                    raise UserError(
                        f"{self.store.display_path(MANIFEST)}: is damaged (pass {pass_} of shard {shard} is missing); "
                        f"{LabelManifest.FIX}"
                    )

    def _add(self, part: str, files: Sequence[StoredFile]) -> None:
        try:
            spec, (file,) = LabelSpec.parse(part), files
        except ValueError:
            raise UserError(
                f"{self.store.display_path(MANIFEST)}: is damaged ({part!r} is no part of a label set); "
                f"{LabelManifest.FIX}"
            ) from None
        for pass_ in range(spec.first_pass, spec.end_pass):
            self._files[spec.shard, pass_] = spec, file

    def _find(self, shard: int, row: int, view: int) -> tuple[PartLabels, int]:
        part = self.of(shard, view)
        place = int(part.place[row, view - part.first_view])
        if place < 0:
            raise UserError(f"{self.store}: no decision for shard {shard}, row {row}, view {view}; label again")
        return part, place

    def _read_part(self, spec: LabelSpec, file: StoredFile) -> PartLabels:
        columns, signatures = read_labels(read_checked(self.store, file, fix=_fix(self.store, spec)))
        store = self.identity.store
        if not isinstance(store, str) and store.kind != "topk":
            columns = probabilities(columns, store.kind, store.tau)
        first = spec.first_pass * self.repeats
        place = np.full((self.rows[spec.shard], (spec.end_pass - spec.first_pass) * self.repeats), -1, np.int32)
        place[columns["row"], columns["view"].astype(np.int64) - first] = np.arange(len(columns["row"]))
        kept = {name: columns[name] for name in columns if name not in ("shard", "row", "view")}
        return PartLabels(first, place, kept, {at: np.frombuffer(one, np.uint8) for at, one in signatures.items()})


def _others(config: RunFile) -> str:
    """The label sets that are there instead of the run file's."""
    names = [name for name in Store(config.workspace).child("labels").folders() if name != config.labels.name]
    return f"; or name one that is there: labels.name = {' or '.join(names)}" if names else ""


def _refuse_others(store: Store, identity: LabelIdentity, config: RunFile, split: Split) -> None:
    made_from = identity.to_json()
    wanted = made_from | {"shards": split.content, "recipe": config.views.identity()}
    settled = {key: value for key, value in config.teacher.identity().items() if value != AUTO}
    wanted["teacher"] = identity.teacher | settled
    require_unchanged(str(store), made_from, wanted, "label again under another labels.name, or restore the run file")


def _fix(store: Store, spec: LabelSpec) -> str:
    """What to do about a damaged part."""
    return f"delete {store.display_path(f'{RECEIPTS}/{spec.name}.json')} and rerun `deit-pipeline label-teacher`"
