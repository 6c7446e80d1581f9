"""The probe: what each kind of work takes on this machine, measured with the stages' own code on a few images.

A sample is packed by the shard stage's code into a temporary folder. Views are then rendered by the datasets of
labelling and training, and networks are run with random weights, since weights change no speed. Nothing is written into
the workspace.

Legend: B views of a batch, S side of a view, K classes.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch

from schemas.config import CacheConfig, RunFile, ShardsConfig
from schemas.errors import UserError
from schemas.manifests import ShardManifest
from schemas.parts import Parts
from schemas.receipts import fingerprint
from schemas.tables import LISTING
from stages.data.center_crop import centre_crops
from stages.data.image_set import ShardedImageSet
from stages.data.split import Split
from stages.estimate.facts import SampleImage
from stages.estimate.timing import Cost
from stages.label.dataset import LabelDataset
from stages.label.label_set import LabelSpec
from stages.replay.order import Stream
from stages.shard.plan import ShardSpec
from stages.shard.writer import ShardMaker, packing_versions
from stages.sources.listing import Source
from stages.storage.commit import commit
from stages.storage.manifest import put_manifest
from stages.storage.store import Store
from stages.train.dataset import TrainDataset

_SHARDS = 4
"""Of the sample: each is a part of labelling, whose images are decoded once for all its views."""
_BATCH = 16
_DISK_BYTES = 32 << 20


@dataclass(frozen=True)
class DataCosts:
    """What a core takes for images and views; all in seconds of a core.

    Attributes:
        pack: to check and pack an image.
        label_view: to render a view for the teacher, where an image is decoded once for a part's passes.
        train_view: to render a view for the student, where it is decoded once a pass.
        cached_view: the same from `cache.decoded`.
        crop: to decode an image and make its centre crop.
        packed_bytes: of an image in its tar, mean.
        encoded_bytes: of an image's file, mean.
        decoded_bytes: of an image's pixels, mean.
    """

    pack: float
    label_view: float
    train_view: float
    cached_view: float
    crop: float
    packed_bytes: float
    encoded_bytes: float
    decoded_bytes: float


def probe_data(config: RunFile, sample: tuple[SampleImage, ...], classes: int, budget: float) -> DataCosts:
    """Pack the sample, and render views of it, on one core.

    Args:
        config: the run file.
        sample: images, at least two.
        classes: K.
        budget: core seconds, about.

    Raises:
        UserError: if fewer than two images of the sample can be read.
    """
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="estimate-") as folder:
            split, pack = _packed(config, sample, classes, Path(folder))
            decoded = CacheConfig(decoded=True, decoded_folder=str(Path(folder, "decoded")))
            cached = Split.open(folder, "train", decoded)
            return DataCosts(
                pack=pack,
                label_view=_label_view(config, split, budget * 0.35),
                train_view=_train_view(config, split, budget * 0.3),
                cached_view=_train_view(config, cached, budget * 0.2, warm=True),
                crop=_crop(config, split, budget * 0.15),
                **_bytes_of(split),
            )
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _packed(config: RunFile, sample: tuple[SampleImage, ...], classes: int, folder: Path) -> tuple[Split, float]:
    """The sample as a split of its own, and core seconds to pack an image of it."""
    rows = []
    for number, image in enumerate(sample):
        name = f"{number:06d}.{image.suffix if image.suffix.isalnum() else 'jpg'}"
        Path(folder, name).write_bytes(image.data)
        rows.append({"name": name, "class": image.label, "file": 0, "block": 0, "offset": 0, "size": len(image.data)})
    settings = ShardsConfig(max_side=config.shards.max_side, on_bad_image="skip")
    maker = ShardMaker(Source(root=str(folder), layout="files"), settings)
    images, store = pa.Table.from_pylist(rows, schema=LISTING), Store(str(folder)).child("shards/train")
    made_from = {"sample": len(rows)}
    blocks = np.array_split(np.arange(len(rows)), max(1, min(_SHARDS, len(rows) // 2)))
    receipts, took = [], 0.0
    for shard, block in enumerate(blocks):
        spec, staging = ShardSpec(shard, images.take(pa.array(block))), Path(folder, f"staging-{shard}")
        staging.mkdir()
        start = time.process_time()
        made = maker(spec, staging)
        took += time.process_time() - start
        receipts.append(commit(store, spec.name, made, fingerprint(made_from)))
    packed = sum(one.rows for one in receipts)
    if packed < 2:
        raise UserError("estimate: fewer than two images of the sample can be read; fix the source's images")
    found = put_manifest(
        store,
        ShardManifest,
        Parts.of(receipts),
        made_from=made_from,
        made_by=fingerprint(made_from),
        versions=packing_versions(),
        stage="shard",
        classes=tuple(map(str, range(classes))),
        found=len(rows),
        samples=packed,
        skipped=(),
        other_files=0,
    )
    return Split(store, found, CacheConfig()), took / len(rows)


def _train_view(config: RunFile, split: Split, budget: float, warm: bool = False) -> float:
    """Core seconds of a view as `TrainDataset` renders it; `warm` = every image was seen before."""
    stream = Stream(
        split.rows, repeats=config.views.repeats, window=_SHARDS, recipe_seed=config.views.seed, seed=config.train.seed
    )
    batch = 2 * config.views.repeats * max(1, _BATCH // (2 * config.views.repeats))
    data = TrainDataset(split, config.views, stream, None, batch=batch, rank=0, world=1)
    first = -(-2 * stream.units_per_pass // batch) if warm else 1
    for step in range(first):
        data[step]

    def rendered(step: int) -> int:
        return len(data[step].views)

    return _core_seconds((partial(rendered, step) for step in range(first, 65_536)), budget)


def _label_view(config: RunFile, split: Split, budget: float) -> float:
    """Core seconds of a view as `LabelDataset` renders it, complete parts only."""
    passes = min(config.labels.passes_per_part, config.labels.views // config.views.repeats)
    data = LabelDataset(split, config.views, _BATCH)

    def part(shard: int) -> int:
        order = data.order(LabelSpec(shard, 0, passes), 1)
        return sum(len(data[share].slots) for share in order)

    shards = [shard for shard, rows in enumerate(split.rows) if rows > 1]
    return _core_seconds((partial(part, shard) for shard in shards), budget)


def _crop(config: RunFile, split: Split, budget: float) -> float:
    images = ShardedImageSet(split, "train")
    size, crop_pct = config.evaluate.image_size or config.image_size, config.evaluate.crop_pct

    def crops(shard: int) -> int:
        made = centre_crops(images, shard, image_size=size, crop_pct=crop_pct, batch=_BATCH, threads=1)
        return sum(len(one.names) for one in made)

    return _core_seconds((partial(crops, shard) for shard, rows in enumerate(split.rows) if rows), budget)


def _core_seconds(turns: Iterator[Callable[[], int]], budget: float) -> float:
    """Core seconds of a unit over turns that each return their number of units, until the budget is spent."""
    count, start = 0, time.process_time()
    for turn in turns:
        count += turn()
        if time.process_time() > start + budget:
            break
    return (time.process_time() - start) / count


def _bytes_of(split: Split) -> dict[str, float]:
    indices = [split.index(shard) for shard in range(len(split.rows))]
    pixels = sum(int((one.heights.astype(np.int64) * one.widths).sum()) for one in indices)
    tars = sum(split.tar(shard).bytes for shard in range(len(split.rows)))
    encoded = sum(int(one.sizes.astype(np.int64).sum()) for one in indices)
    return {
        "packed_bytes": tars / len(split),
        "encoded_bytes": encoded / len(split),
        "decoded_bytes": 3 * pixels / len(split),
    }


def probe_disk(folder: Path, budget: float) -> Cost:
    """The cost of a byte that is written, hashed and flushed as a part's file is, into a temporary folder.

    Args:
        folder: on the disk, where a folder can be made.
        budget: seconds.
    """
    data = np.random.default_rng(0).bytes(_DISK_BYTES)
    with tempfile.TemporaryDirectory(prefix=".estimate-", dir=folder) as inside:
        store, count = Store(inside), 0
        start, cores = time.perf_counter(), time.process_time()
        while time.perf_counter() < start + budget or not count:
            store.put("file", data)
            count += len(data)
        return Cost((time.perf_counter() - start) / count, (time.process_time() - cores) / count)
