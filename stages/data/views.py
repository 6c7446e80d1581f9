"""Shards (and labels) → batches of uint8 views, for training and for labelling.

Training asks for steps: a batch is a pure function of its step, so any number of worker processes may
build batches, and resuming is asking for a later step. Labelling walks whole parts: every worker decodes its own
rows once and makes all their views of the part. How batches come from the worker processes is `stages/data/loader.py`.

Legend: B views of a local batch, U = B / 2 pair-views, S side of a view.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from schemas.errors import PipelineError
from schemas.recipe import Recipe
from stages.data.decoded import DecodedCache
from stages.data.split import Split
from stages.label.label_set import LabelSet, LabelSpec
from stages.replay.apply import Renderer
from stages.replay.decide import DecidedMix, Decider
from stages.replay.decode import DECODERS, decode
from stages.replay.mix import Mix
from stages.replay.order import PairView, Stream, pairing
from stages.replay.signature import differs, signature, signed_rows
from stages.train.losses import SoftLabels


class Batch(NamedTuple):
    """What one rank trains on in one step.

    Attributes:
        step: number of the step.
        views: uint8 [B, S, S, 3], neighbours are each other's partners.
        classes: true classes, int64 [B].
        mix: how neighbours are mixed, over U.
        decisions: the teacher's classes, int64 [B]; empty without labels.
        soft: the teacher's distributions; None where they are not asked for.
    """

    step: int
    views: Tensor
    classes: Tensor
    mix: Mix
    decisions: Tensor
    soft: SoftLabels | None = None


KEPT_BYTES = 768 << 20
"""Decoded images that a process keeps throughout a part: 1,300 photographs of 500 x 400 pixels."""


class ViewMaker:
    """Makes views of a split's samples by address.

    It keeps the two images used last, which are a pair, and others decoded while they fit into `keep_bytes`.
    """

    def __init__(self, split: Split, recipe: Recipe, keep_bytes: int = 0) -> None:
        self.split, self.recipe = split, recipe
        self.decider = Decider(recipe)
        self.renderer = Renderer(recipe.image_size)
        self._pixels = DecodedCache(split) if split.cache.decoded else None
        self._keep_bytes, self._kept_bytes = keep_bytes, 0
        self._decoded: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def view(self, shard: int, row: int, view: int, out: np.ndarray) -> None:
        """Write a view, uint8 [S, S, 3], into `out`.

        Raises:
            PipelineError: if the image is not the one that was sharded or cannot be decoded.
        """
        self.views([(shard, row, view)], out[None])

    def views(self, slots: Sequence[tuple[int, int, int]], outs: np.ndarray) -> None:
        """Write the views of many slots, each (shard, row, view), into `outs`, uint8 [slots, S, S, 3].

        Those of one image are made together, while it is in the processor's cache.

        Raises:
            PipelineError: as `view`.
        """
        of_image: dict[tuple[int, int], list[int]] = {}
        for slot, (shard, row, _) in enumerate(slots):
            of_image.setdefault((shard, row), []).append(slot)
        for (shard, row), mine in of_image.items():
            index = self.split.index(shard)
            size = int(index.heights[row]), int(index.widths[row])
            decided = [self.decider.view(*slots[slot], *size) for slot in mine]
            image = self._image(shard, row, max(one.crop.top + one.crop.height for one in decided), size)
            self.renderer.render_all(image, decided, [outs[slot] for slot in mine])

    def mixes(self, units: Sequence[PairView]) -> Mix:
        """The decided mixes of pair-views."""
        return stack_mixes([self.decider.mix(unit.shard, unit.pair, unit.view) for unit in units])

    def _image(self, shard: int, row: int, rows: int, size: tuple[int, int]) -> np.ndarray:
        """The image, of which at least the first `rows` rows are there; all of them where other views want it too."""
        address = shard, row
        kept = self._decoded.get(address)
        if kept is None or len(kept) < rows:
            self._kept_bytes -= kept.nbytes if kept is not None else 0
            once = kept is None and not self._keep_bytes
            self._decoded[address] = self._load(shard, row, rows if once else None, size)
            self._kept_bytes += self._decoded[address].nbytes
        self._decoded.move_to_end(address)
        self._forget()
        return self._decoded[address]

    def expect(self, now: Sequence[int], after: Sequence[int]) -> None:
        """Say which shards are read now and which after them, as `Split.expect`; not those whose pixels are all kept.

        Raises:
            PipelineError: if the cache of shards cannot hold those that are read now.
        """
        kept = self._pixels.complete if self._pixels else lambda _: False
        self.split.expect(*([shard for shard in shards if not kept(shard)] for shards in (now, after)))

    def _load(self, shard: int, row: int, rows: int | None, size: tuple[int, int]) -> np.ndarray:
        if self._pixels:
            image = self._pixels.image(shard, row, partial(self._decode, shard, row, None, size))
            if image is not None:
                return image
        return self._decode(shard, row, rows, size)

    def _decode(self, shard: int, row: int, rows: int | None, size: tuple[int, int]) -> np.ndarray:
        data = self.split.image(shard, row)
        try:
            image = decode(data, rows)
            height, width = image.shape[:2]
            if width != size[1] or not (rows or size[0]) <= height <= size[0]:
                raise ValueError(f"is {width} x {height} pixels, its index says {size[1]} x {size[0]}; shard again")
        except ValueError as error:
            name = self.split.index(shard).names[row]
            raise PipelineError(f"{self.split.store}: image {name} (shard {shard}, row {row}): {error}") from None
        return image

    def _forget(self) -> None:
        """Drop what does not fit, but never the pair; of the others those used last, which a part needs again last."""
        while self._kept_bytes > self._keep_bytes and len(self._decoded) > 2:
            address = next(islice(reversed(self._decoded), 2, None))
            self._kept_bytes -= self._decoded.pop(address).nbytes


def stack_mixes(decided: Sequence[DecidedMix]) -> Mix:
    """Decided mixes as tensors over U."""
    boxes = [
        (m.box.top, m.box.left, m.box.top + m.box.height, m.box.left + m.box.width) if m.box else (0, 0, 0, 0)
        for m in decided
    ]
    lam = torch.tensor([m.lam for m in decided], dtype=torch.float32)
    blend = torch.tensor([1.0 if m.box else m.lam for m in decided], dtype=torch.float32)
    return Mix(lam=lam, blend=blend, box=torch.tensor(boxes, dtype=torch.int32).reshape(-1, 4))


class Steps(Dataset[Batch]):
    """A rank's batches by step: `steps[s]`.

    Args:
        split: the sharded split.
        recipe: of the views.
        stream: the order of the run.
        labels: the teacher's decisions; None = train without.
        soft_tau: the temperature for which distributions are wanted beside decisions; None = without.
        batch: global batch size, a multiple of 2 · world.
        rank: of this process.
        world: number of training processes.
    """

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        stream: Stream,
        labels: LabelSet | None,
        *,
        soft_tau: float | None = None,
        batch: int,
        rank: int,
        world: int,
    ) -> None:
        self.split, self.recipe, self.labels, self.soft_tau = split, recipe, labels, soft_tau
        self._slice = {"batch": batch, "rank": rank, "world": world}
        self._stream = stream
        self._maker: ViewMaker | None = None  # built where it is used: its buffers do not travel

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maker": None}

    def units(self, step: int) -> list[PairView]:
        """The pair-views of a step."""
        return self._stream.step(step, **self._slice)

    def __getitem__(self, step: int) -> Batch:
        """Build the batch of a step.

        Raises:
            PipelineError: if stored bytes are wrong, or a view is not the one the teacher saw.
        """
        maker = self._maker = self._maker or ViewMaker(self.split, self.recipe)
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
        return Batch(
            step, torch.from_numpy(views), torch.tensor(classes), maker.mixes(units), torch.tensor(decisions), soft
        )

    def _check(self, labels: LabelSet, address: tuple[int, int, int], view: np.ndarray) -> None:
        shard, row, number = address
        part = labels.of(shard, number)
        kept = part.signatures.get((row, number))
        if kept is not None and differs(kept, signature(view)):
            raise PipelineError(
                f"shard {shard}, row {row}, view {number}: is not the view the teacher saw (signatures differ); "
                f"labelled with {_versions(labels.versions)}, here {_versions(pixel_versions())}: "
                "label again, or train with the versions that labelled"
            )


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


class PartViews(Dataset[Contribution]):
    """The views of parts, share by share. A process that makes a part's shares in order decodes each image once."""

    def __init__(self, split: Split, recipe: Recipe, batch: int) -> None:
        self.split, self.recipe, self.batch = split, recipe, batch
        self._spec: LabelSpec | None = None
        self._batches: list[list[PairView]] = []
        self._maker: ViewMaker | None = None

    def order(self, spec: LabelSpec, shares: int) -> list[Share]:
        """All of a part, batch by batch, each in as many shares as there are processes."""
        count = sum(1 for _ in part_batches(self.split, self.recipe, spec, self.batch))
        return [Share(spec, batch, share, shares) for batch in range(count) for share in range(shares)]

    def __getitem__(self, wanted: Share) -> Contribution:
        """Make one share.

        Raises:
            PipelineError: as `ViewMaker.views`.
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

    def _open(self, spec: LabelSpec) -> ViewMaker:
        """What makes a part's views; the images of the part before are let go."""
        if self._maker is None or spec != self._spec:
            self._spec, self._batches = spec, list(part_batches(self.split, self.recipe, spec, self.batch))
            self._maker = ViewMaker(self.split, self.recipe, KEPT_BYTES)
        return self._maker

    def _signatures(
        self, shard: int, row_views: list[tuple[int, int]], views: np.ndarray
    ) -> dict[tuple[int, int], bytes]:
        rows, made = self.split.rows[shard], zip(row_views, views, strict=True)
        return {(row, view): signature(one).tobytes() for (row, view), one in made if row in signed_rows(view, rows)}


def part_batches(split: Split, recipe: Recipe, spec: LabelSpec, batch: int) -> Iterator[list[PairView]]:
    """A part's pair-views in the batches the teacher sees them in; passes do not share batches.

    So the batches of a pass, and with them its decisions to the bit, do not depend on how passes are dealt into parts.
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


def pixel_versions() -> dict[str, str]:
    """Versions of the libraries that touch pixels."""
    import torchvision

    return {
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        **DECODERS,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
