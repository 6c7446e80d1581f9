"""Views per second of the replay against timm's transform, as DeiT builds it, on one core.

Both sides take the same JPEG bytes in the same process, in turn: timm to a normalised float tensor, decoding
for every view as a data loader does; ours to the uint8 view, decoding once for 1, 3, 10 and 30 views, or taking the
pixels from a filled `cache.decoded` on the disk that holds temporary files. The floor is what no replay on this decoder
and resizer can beat: a share of one decode, and one crop-and-resize. Times are the process's CPU time, so that a busy
machine changes little. Where timm raises (Posterize at zero bits with a recent Pillow) its side gets the black image
that older Pillow gave.

    python benchmarks/replay.py --images DIR --json
    python benchmarks/replay.py --image-source 12-megapixel --limit 10 --rounds 2 --json
"""

import argparse
import io
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from loader import pack
from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform

from schemas.config import CacheConfig
from schemas.recipe import Recipe
from stages.data.split import Split
from stages.data.views import ViewRenderer
from stages.replay.apply import Renderer
from stages.replay.decide import DecidedView, Decider
from stages.replay.decode import decode

VIEWS = (1, 3, 10, 30)
BATCH = 20
RECIPE = Recipe()


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder with JPEG files, at any depth")
    parser.add_argument(
        "--image-source",
        choices=("folder", "12-megapixel"),
        default="folder",
        help="the folder of --images, or made pictures of 4000 x 3000 pixels",
    )
    parser.add_argument("--limit", type=int, default=200, help="images to use, evenly spread over the folder")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # timm reads all three
        seed(0)
    if (arguments.image_source == "folder") != bool(arguments.images):
        parser.error("name either a folder with --images, or --image-source 12-megapixel")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images:
            files = read_jpegs(Path(arguments.images), arguments.limit)
        else:
            files = [large_picture(number) for number in range(arguments.limit)]
        found = measure(packed(files, Path(folder)), arguments.rounds)
    print(json.dumps(found) if arguments.json else report(found))


def read_jpegs(folder: Path, limit: int) -> list[bytes]:
    """The bytes of up to `limit` JPEG files below a folder, evenly spread over its sorted paths."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{folder}: no JPEG files below it; name a folder that has some")
    step = max(1, len(paths) // limit)
    return [path.read_bytes() for path in paths[::step][:limit]]


def large_picture(number: int) -> bytes:
    """A JPEG of 4000 x 3000 pixels, smooth with grain, as cameras make them."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8))
    smooth = cv2.resize(np.asarray(coarse), (4000, 3000), interpolation=cv2.INTER_CUBIC)
    grainy = np.clip(smooth + random.normal(0, 6, (3000, 4000, 1)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grainy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def packed(files: list[bytes], folder: Path) -> Split:
    """A shard of the files, with an empty cache of decoded images beside it."""
    for number, data in enumerate(files):
        path = folder / "images" / "all" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    split = pack(str(folder / "images"), folder / "shards", samples_per_shard=len(files))
    split.cache = CacheConfig(decoded=True, decoded_folder=str(folder / "decoded"))
    return split


def measure(split: Split, rounds: int) -> dict[str, Any]:
    """Time all sides in turn, batch by batch of images, `rounds` times after one round that is not counted.

    Returns:
        ratio_V: ours over timm's views a second at V views a decode, ratio_3_decoded: at 3 views from decoded pixels;
        views_per_second_decoded: those; floor_share_3: our rate over the floor's at 3; share_*: where the time of a
        view goes at 3 views a decode; *_us: microseconds a view; decoded_bytes: of an image in the cache.
    """
    maker = ViewRenderer(split, RECIPE)
    batches = [Batch(split, maker, range(split.rows[0])[first:][:BATCH]) for first in range(0, split.rows[0], BATCH)]
    seconds: dict[str, float] = defaultdict(float)
    views: dict[str, int] = defaultdict(int)
    for turn in range(rounds + 1):
        for batch in batches:
            for name, side in batch.sides().items():
                start = time.process_time()
                count = side()
                if turn:
                    seconds[name] += time.process_time() - start
                    views[name] += count
    index = split.index(0)
    pixels = float((index.heights.astype(int) * index.widths).mean())
    facts = {"decoded_bytes": round(3 * pixels), "encoded_bytes": round(float(index.sizes.mean()))}
    return summarise({name: seconds[name] / views[name] * 1e6 for name in seconds}) | facts


def summarise(us: dict[str, float]) -> dict[str, Any]:
    """Turn microseconds a view into the figures reported."""
    total, decoding = us["ours_3"], us["decode"] / 3
    shares = {"decode": decoding, "resize": us["resize"], "ops": us["resize_ops"] - us["resize"]}
    shares["rest"] = total - sum(shares.values())
    return {
        **{f"ratio_{count}": round(us["timm"] / us[f"ours_{count}"], 3) for count in VIEWS},
        "ratio_3_decoded": round(us["timm"] / us["decoded_3"], 3),
        "views_per_second_decoded": round(1e6 / us["decoded_3"]),
        "floor_share_3": round((decoding + us["resize"]) / total, 3),
        **{f"share_{name}": round(value / total, 3) for name, value in shares.items()},
        **{f"{name}_us": round(value, 1) for name, value in us.items()},
    }


class Batch:
    """Some images, what was decided for them, and each side's work on them; all of it returns its count of views."""

    def __init__(self, split: Split, maker: ViewRenderer, rows: range) -> None:
        self._files = [split.image(0, row) for row in rows]
        self._rows, self._maker = rows, maker
        self._decider = Decider(RECIPE)
        self._renderer = Renderer(RECIPE.image_size)
        self._out = np.empty((max(VIEWS), RECIPE.image_size, RECIPE.image_size, 3), np.uint8)
        images = [decode(data) for data in self._files]
        self._sizes = [image.shape[:2] for image in images]
        self._decided = [
            (image, one) for row, image in zip(rows, images, strict=True) for one in self._decide(image.shape, row, 3)
        ]

    def sides(self) -> dict[str, Callable[[], int]]:
        """What is timed, by name."""
        ours = {f"ours_{count}": partial(self.views, count) for count in VIEWS}
        partly: dict[str, Callable[[], int]] = {
            "decoded_3": partial(self.from_decoded, 3),
            "decode": self.decodes,
            "resize": partial(self.renders, False),
            "resize_ops": partial(self.renders, True),
        }
        return {"timm": partial(timm_views, self._files), **ours, **partly}

    def views(self, count: int) -> int:
        """From bytes: decide, decode as many rows of each file as are needed once, and render `count` views of it."""
        for row, data, size in zip(self._rows, self._files, self._sizes, strict=True):
            decided = self._decide(size, row, count)
            image = decode(data, max(one.crop.top + one.crop.height for one in decided))
            self._renderer.render_all(image, decided, self._out[:count])
        return count * len(self._files)

    def from_decoded(self, count: int) -> int:
        """As a data worker: from the cache of decoded images."""
        for row in self._rows:
            self._maker.views([(0, row, view) for view in range(count)], self._out[:count])
        return count * len(self._files)

    def decodes(self) -> int:
        """From bytes: decode alone."""
        for data in self._files:
            decode(data)
        return len(self._files)

    def renders(self, ops: bool) -> int:
        """Crop and resize three views of each decoded image, with operations or without."""
        for nth, (image, one) in enumerate(self._decided):
            decided = DecidedView(one.crop, False, one.ops if ops else (), None)
            self._renderer.render(image, decided, self._out[nth % 3])
        return len(self._decided)

    def _decide(self, size: tuple[int, ...], row: int, count: int) -> list[DecidedView]:
        return [self._decider.view(0, row, view, size[0], size[1]) for view in range(count)]


def timm_views(files: list[bytes]) -> int:
    """The side of timm, from bytes to a normalised tensor."""
    for data in files:
        TIMM(Image.open(io.BytesIO(data)).convert("RGB"))
    return len(files)


def _timm_transform() -> Any:
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = _posterize_or_black
    return create_transform(
        RECIPE.image_size,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )


def _posterize_or_black(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


TIMM = _timm_transform()


def report(found: dict[str, Any]) -> str:
    """The figures as lines to read."""
    lines = [f"timm               {1e6 / found['timm_us']:7.0f} views/s"]
    for count in VIEWS:
        rate = 1e6 / found[f"ours_{count}_us"]
        lines.append(f"{count:2d} views a decode  {rate:7.0f} views/s   {found[f'ratio_{count}']:.2f} times timm")
    rate, ratio = found["views_per_second_decoded"], found["ratio_3_decoded"]
    lines.append(f"decoded, 3 views   {rate:7.0f} views/s   {ratio:.2f} times timm")
    shares = "  ".join(f"{name} {found[f'share_{name}']:.0%}" for name in ("decode", "resize", "ops", "rest"))
    lines += [
        f"at 3 views a decode: {shares}",
        f"                     {found['floor_share_3']:.0%} of the floor's rate",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
