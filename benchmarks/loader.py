"""Images per second of the loader into a consumer on the device, against timm's `create_loader`; who waits for whom.

Both sides read the same JPEG files with the same number of worker processes, in turn, in one run: timm with DeiT's
arguments (repeated augmentation by its own sampler, its prefetcher on a GPU, mixup and CutMix on the device), ours from
shards made of the files (uint8 to the device, normalised and mixed there). Start-up is not counted: the clock starts
with each turn's first batch.

Then a consumer that is slower than the loader: each step also multiplies matrices on the device for three times as
long as the loader, alone, took for a batch, so the loader keeps ahead even where both share the cores. Counted is
the share of a step in which the consumer waited for its batch.

And without a consumer: batches are taken and dropped. Beside it the rate of the replay itself: as many processes as
there are workers build the same batches, and hand them to nobody. Without --images photograph-like JPEGs are made.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, ImageOps
from timm.data import Mixup, auto_augment, create_dataset, create_loader

from pipeline.commands.shard import shard
from schemas.recipe import IMAGENET_MEAN, IMAGENET_STD, Recipe
from schemas.run_file import parse_run
from stages.data.loader import load, on_device
from stages.data.split import Split
from stages.replay.mix import normalised_mix
from stages.replay.order import Stream
from stages.train.dataset import TrainDataset

RECIPE = Recipe()
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GENERATED = 256
SLOWER = 3
AHEAD = 2  # batches a worker may be ahead, on either side

Side = tuple[Iterator[Any], Callable[[Any], Any]]
"""Batches, and what is done with each on the device."""


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="image folder: one folder of JPEG files for each class")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of either side")
    parser.add_argument("--batch", type=int, default=48, help="views in a batch")
    parser.add_argument("--batches", type=int, default=16, help="batches in a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images or generate(Path(folder, "images"))
        split = pack(images, Path(folder, "shards"))
        found = measure(images, split, arguments.workers, arguments.batch, arguments.batches, arguments.rounds)
    print(json.dumps(found) if arguments.json else report(found))


def generate(folder: Path) -> str:
    """Make an image folder of smooth random pictures with grain, 500 x 375 pixels, as long as photographs are."""
    random = np.random.default_rng(0)
    for number in range(GENERATED):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        grainy = np.clip(smooth + random.normal(0, 12, (375, 500, 3)), 0, 255).astype(np.uint8)
        path = folder / f"class-{number % 8}" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grainy).save(path, quality=90)
    return str(folder)


def pack(images: str, folder: Path, samples_per_shard: int = 250) -> Split:
    """Shards of an image folder, as the shard stage makes them."""
    config = parse_run(
        {
            "workspace": str(folder),
            "source": {"train": images},
            "shards": {"samples_per_shard": samples_per_shard},
            "cluster": {"address": "inline"},
        },
        "benchmark",
    )
    shard(config, lambda line: print(line, file=sys.stderr))
    return Split.open(str(folder), "train")


def measure(images: str, split: Split, workers: int, batch: int, batches: int, rounds: int) -> dict[str, Any]:
    """Both sides in turn, with and without a consumer, and the replay alone; then the slow consumer.

    Returns:
        ratio: ours over timm's images a second; both rates, medians over rounds; loader_*: the same without a consumer;
        replay_images_per_second: of as many processes as workers, which hand their batches to nobody, and loader_share:
        the loader's part of it; waiting_share: of the slow consumer's steps; workers; views_per_decode; batch; device.
    """
    sides: dict[str, Callable[[], float]] = {
        "timm": lambda: consume(timm_side(images, workers, batch, batches), batches)[0],
        "ours": lambda: consume(our_side(split, workers, batch), batches)[0],
        "timm_loader": lambda: consume(dropped(timm_side(images, workers, batch, batches)), batches)[0],
        "loader": lambda: consume(dropped(our_side(split, workers, batch)), batches)[0],
        "replay": lambda: replay_alone(split, workers, batch, batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(side())
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ours, timm = median["ours"], median["timm"]
    _, waiting_share = consume(our_side(split, workers, batch), batches, busy=SLOWER * ours)
    return {
        "ratio": round(timm / ours, 3),
        "images_per_second": round(batch / ours, 1),
        "timm_images_per_second": round(batch / timm, 1),
        "loader_ratio": round(median["timm_loader"] / median["loader"], 3),
        "loader_images_per_second": round(batch / median["loader"], 1),
        "timm_loader_images_per_second": round(batch / median["timm_loader"], 1),
        "replay_images_per_second": round(batch / median["replay"], 1),
        "loader_share": round(median["replay"] / median["loader"], 3),
        "waiting_share": round(waiting_share, 4),
        "workers": workers,
        "views_per_decode": RECIPE.repeats,
        "batch": batch,
        "device": DEVICE.type,
    }


def our_side(split: Split, workers: int, batch: int) -> Side:
    """Ours: uint8 views, normalised and mixed on the device."""
    loaded = load(our_steps(split, batch), workers=workers, order=range(1_000_000), pin=DEVICE.type == "cuda")
    return on_device(loaded, DEVICE), lambda one: normalised_mix(one.views, IMAGENET_MEAN, IMAGENET_STD, one.mix)


def our_steps(split: Split, batch: int) -> TrainDataset:
    """Batches by step, without labels."""
    stream = Stream(split.rows, repeats=RECIPE.repeats, window=16, recipe_seed=0, seed=0)
    return TrainDataset(split, RECIPE, stream, None, batch=batch, rank=0, world=1)


def dropped(side: Side) -> Side:
    """The batches of a side, with which nothing is done."""
    return side[0], lambda one: None


def replay_alone(split: Split, processes: int, batch: int, batches: int) -> float:
    """Seconds a batch where processes build their share of `batches` and hand it to nobody."""
    context = multiprocessing.get_context("forkserver")
    ready, ends = context.Barrier(processes), context.Queue()
    steps = our_steps(split, batch)
    built = [
        context.Process(target=_build, args=(steps, range(nth, processes + batches, processes), ready, ends))
        for nth in range(processes)
    ]
    for process in built:
        process.start()
    times = [ends.get() for _ in built]
    for process in built:
        process.join()
    return (max(end for _, end in times) - min(start for start, _ in times)) / batches


def _build(steps: TrainDataset, numbers: range, ready: Any, ends: Any) -> None:
    """Build a first batch, wait for the others, build the rest."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    steps[numbers[0]]
    ready.wait()
    start = time.perf_counter()
    for number in numbers[1:]:
        steps[number]
    ends.put((start, time.perf_counter()))


def timm_side(images: str, workers: int, batch: int, batches: int, side: int = RECIPE.image_size) -> Side:
    """Timm's: its loader as DeiT calls it, and its mixup and CutMix on the device."""
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize_or_black
    if not dist.is_initialized():  # which its sampler for repeated augmentation asks for
        store: Any = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    dataset = create_dataset("", root=images, is_training=True)
    dataset.reader.samples *= 1 + 2 * batch * (batches + AHEAD * workers) // len(dataset)  # an epoch outlasts a turn
    loader = create_loader(
        dataset,
        input_size=(3, side, side),
        batch_size=batch,
        is_training=True,
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        num_workers=workers,
        num_aug_repeats=RECIPE.repeats,
        distributed=True,
        pin_memory=DEVICE.type == "cuda",
        use_prefetcher=DEVICE.type == "cuda",
        persistent_workers=False,
        device=DEVICE,
    )
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=1000)
    return iter(loader), lambda one: mixup(*(tensor.to(DEVICE, non_blocking=True) for tensor in one))


def consume(side: Side, count: int, busy: float = 0.0) -> tuple[float, float]:
    """Take a first batch, then `count` more, multiplying matrices for `busy` seconds with each.

    Returns:
        Seconds a batch, and the share of them spent waiting for it.
    """
    batches, finish = side
    finish(next(batches))
    waited, start = 0.0, time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        finish(batch)
        multiply(busy)
    elapsed = time.perf_counter() - start
    return elapsed / count, waited / elapsed


def multiply(seconds: float) -> None:
    """Keep the device busy: products of 512 x 512 matrices, on one thread of a CPU."""
    matrix = torch.rand(512, 512, device=DEVICE)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        float((matrix @ matrix)[0, 0])  # waits for the product


def posterize_or_black(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Timm's operation, which raises at zero bits with a recent Pillow; older ones gave black."""
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def report(found: dict[str, Any]) -> str:
    """The figures as lines to read."""
    return "\n".join(
        [
            f"{found['workers']} workers, batches of {found['batch']}, to {found['device']}",
            f"timm  {found['timm_images_per_second']:7.0f} images/s",
            f"ours  {found['images_per_second']:7.0f} images/s  {found['ratio']:.2f} times timm, "
            f"{found['views_per_decode']} views a decode",
            f"without a consumer: timm {found['timm_loader_images_per_second']:.0f}, ours "
            f"{found['loader_images_per_second']:.0f} images/s, {found['loader_ratio']:.2f} times timm; "
            f"{found['loader_share']:.0%} of the replay's {found['replay_images_per_second']:.0f}",
            f"a consumer {SLOWER} times slower than the loader waits {found['waiting_share']:.2%} of its time",
        ]
    )


if __name__ == "__main__":
    main()
