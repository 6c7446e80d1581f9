"""Read what earlier stages stored: a split's images by address, a label set's decisions by pass.

Every byte is proven before it is used: an index or a label file against its receipt, an image against the checksum
in the index. So one flipped bit ends a run with a line, not with a slightly worse student.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from schemas.config import Cache, RunFile, Teacher
from schemas.errors import PipelineError
from schemas.receipts import StoredFile, refuse_changes
from schemas.tables import SIGNATURE_BYTES
from stages.cache import ShardCache
from stages.shard import shard_name
from stages.store import Store, read_checked, read_manifest

_OPEN_TARS = 32


class _Tar(NamedTuple):
    """A shard's tar: where it lies and what it is."""

    store: Store
    file: StoredFile


@dataclass(frozen=True)
class Index:
    """A shard's index as arrays over its rows."""

    offsets: np.ndarray
    sizes: np.ndarray
    crc32s: np.ndarray
    classes: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    names: list[str]


class Split:
    """A sharded split: samples by address (shard, row). Picklable; opens its files where it is used.

    Args:
        store: of the split's folder.
        manifest: of its shard stage.
        cache: where shards across a network are kept.
    """

    def __init__(self, store: Store, manifest: dict[str, Any], cache: Cache) -> None:
        self.store = store
        self.rows = tuple(int(part["rows"]) for part in manifest["parts"])
        self.classes: tuple[str, ...] = tuple(manifest["classes"])
        self.content: str = manifest["content"]
        self._index_files = [_file(part, ".parquet") for part in manifest["parts"]]
        adopted = manifest.get("adopted")
        tars = adopted["tars"] if adopted else [vars(_file(part, ".tar")) for part in manifest["parts"]]
        where = Store(adopted["root"]) if adopted else store
        self._tars = [_Tar(where, StoredFile(**tar)) for tar in tars]
        self._cache = None if where.local else ShardCache(where, cache)
        self._caches()

    @classmethod
    def open(cls, workspace: str, name: str, cache: Cache | None = None) -> "Split":
        """Open a split that is whole.

        Raises:
            PipelineError: if it is not.
        """
        store = Store(workspace).at(f"shards/{name}")
        manifest = read_manifest(store)
        if manifest is None:
            raise PipelineError(f"{store}: split {name} is not sharded yet; run `deit-pipeline shard`")
        return cls(store, manifest, cache or Cache())

    def __len__(self) -> int:
        return sum(self.rows)

    @property
    def pairs(self) -> int:
        """Pairs that are mixed in a pass."""
        return sum(rows // 2 for rows in self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("index", "_tar")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._caches()

    def image(self, shard: int, row: int) -> bytes:
        """A sample's image file.

        Raises:
            PipelineError: if its bytes are not those that were sharded.
        """
        index = self.index(shard)
        offset, size = int(index.offsets[row]), int(index.sizes[row])
        if self._cache is not None:
            data = self._cache.read(self._tars[shard].file, size, offset)
        else:
            data = bytes(self._tar(shard).read_at(size, offset))
        if zlib.crc32(data) != int(index.crc32s[row]):
            name = self._tar_name(shard)
            raise PipelineError(
                f"{name}: image {index.names[row]} (row {row}) has other bytes; run `deit-pipeline verify`"
            )
        return data

    def expect(self, now: Sequence[int], after: Sequence[int]) -> None:
        """Say which shards are read now and which after them; copies are made ahead where they are across a network.

        Raises:
            PipelineError: if the cache cannot hold those that are read now.
        """
        if self._cache is not None:
            self._cache.expect(*([self._tars[shard].file for shard in shards] for shards in (now, after)))

    def _caches(self) -> None:
        self.index: Callable[[int], Index] = lru_cache(256)(self._read_index)
        self._tar: Callable[[int], Any] = lru_cache(_OPEN_TARS)(self._open_tar)

    def _open_tar(self, shard: int) -> Any:
        store, file = self._tars[shard]
        try:
            return store.open(file.path)
        except FileNotFoundError:
            raise PipelineError(f"{self._tar_name(shard)}: is missing; run `deit-pipeline verify`") from None

    def _tar_name(self, shard: int) -> str:
        store, file = self._tars[shard]
        return store.name(file.path)

    def _read_index(self, shard: int) -> Index:
        table = pq.read_table(io.BytesIO(read_checked(self.store, self._index_files[shard])))
        column = {name: table[name] for name in table.column_names}
        return Index(
            offsets=column["offset"].to_numpy(),
            sizes=column["size"].to_numpy(),
            crc32s=column["crc32"].to_numpy(),
            classes=column["class"].to_numpy(),
            heights=column["height"].to_numpy(),
            widths=column["width"].to_numpy(),
            names=column["name"].to_pylist(),
        )


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


def _file(part: dict[str, Any], suffix: str) -> StoredFile:
    return next(StoredFile(**file) for file in part["files"] if file["path"].endswith(suffix))
