"""Views per second of the replay against timm's transform, as DeiT builds it, on one core.

Both sides take the same JPEG bytes in the same process, in turn: timm to a normalised float tensor, decoding
for every view as a data loader does; ours to the uint8 view, decoding once for 1, 3, 10 and 30 views. The
floor is what no replay on this decoder and resizer can beat: a share of one decode, and one
crop-and-resize. Times are the process's CPU time, so that a busy machine changes little, and medians
over rounds. Where timm raises (Posterize at zero bits with a recent Pillow) its side gets the black
image that older Pillow gave.
"""

import argparse
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment, create_transform

from schemas.recipe import Recipe
from stages.replay.apply import Renderer, decode
from stages.replay.decide import DecidedView, Decider

VIEWS = (1, 3, 10, 30)
RECIPE = Recipe()


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder with JPEG files, at any depth")
    parser.add_argument("--limit", type=int, default=200, help="images to use, evenly spread over the folder")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # timm reads all three
        seed(0)
    found = measure(read_jpegs(Path(arguments.images), arguments.limit), arguments.rounds)
    print(json.dumps(found) if arguments.json else report(found))


def read_jpegs(folder: Path, limit: int) -> list[bytes]:
    """The bytes of up to `limit` JPEG files below a folder, evenly spread over its sorted paths."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{folder}: no JPEG files below it; name a folder that has some")
    step = max(1, len(paths) // limit)
    return [path.read_bytes() for path in paths[::step][:limit]]


def measure(files: list[bytes], rounds: int) -> dict[str, Any]:
    """Time every side in turn, `rounds` times after one round that is not counted.

    Returns:
        ratio_V: ours over timm's views a second at V views a decode; floor_share_3: our rate over the
        floor's at 3; share_*: where the time of a view goes at 3 views a decode; *_us: microseconds a view.
    """
    ours = Ours(files)
    sides: dict[str, Callable[[], int]] = {
        "timm": lambda: timm_views(files),
        **{f"ours_{count}": lambda count=count: ours.views(count) for count in VIEWS},  # type: ignore[misc]
        "decode": ours.decodes,
        "resize": lambda: ours.renders(ours.bare),
        "resize_ops": lambda: ours.renders(ours.with_ops),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            start = time.process_time()
            count = side()
            if turn:
                times[name].append((time.process_time() - start) / count * 1e6)
    return summarise({name: statistics.median(values) for name, values in times.items()})


def summarise(us: dict[str, float]) -> dict[str, Any]:
    """Turn microseconds a view into the figures reported."""
    total, decoding = us["ours_3"], us["decode"] / 3
    shares = {"decode": decoding, "resize": us["resize"], "ops": us["resize_ops"] - us["resize"]}
    shares["rest"] = total - sum(shares.values())
    return {
        **{f"ratio_{count}": round(us["timm"] / us[f"ours_{count}"], 3) for count in VIEWS},
        "floor_share_3": round((decoding + us["resize"]) / total, 3),
        **{f"share_{name}": round(value / total, 3) for name, value in shares.items()},
        **{f"{name}_us": round(value, 1) for name, value in us.items()},
    }


class Ours:
    """The replay's side: the files, and decisions for the partial measurements."""

    def __init__(self, files: list[bytes]) -> None:
        self._files = files
        self._decider = Decider(RECIPE)
        self._renderer = Renderer(RECIPE.image_size)
        self._out = np.empty((30, RECIPE.image_size, RECIPE.image_size, 3), np.uint8)
        self._images = [decode(data) for data in files]
        whole = [
            (image, self._decider.view(0, row, view, *image.shape[:2]))
            for row, image in enumerate(self._images)
            for view in range(3)
        ]
        self.bare = [(image, DecidedView(one.crop, False, (), None)) for image, one in whole]
        self.with_ops = [(image, DecidedView(one.crop, False, one.ops, None)) for image, one in whole]

    def views(self, count: int) -> int:
        """From bytes: decode each file once, decide and render `count` views of it."""
        for row, data in enumerate(self._files):
            image = decode(data)
            decided = [self._decider.view(0, row, view, image.shape[0], image.shape[1]) for view in range(count)]
            self._renderer.render_all(image, decided, self._out[:count])
        return count * len(self._files)

    def decodes(self) -> int:
        """From bytes: decode alone."""
        for data in self._files:
            decode(data)
        return len(self._files)

    def renders(self, decided: Iterable[tuple[np.ndarray, DecidedView]]) -> int:
        """Render decided views of decoded images; an image's views follow each other, as in `views`."""
        count = 0
        for count, (image, one) in enumerate(decided, 1):
            self._renderer.render(image, one, self._out[count % 3])
        return count


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
    shares = "  ".join(f"{name} {found[f'share_{name}']:.0%}" for name in ("decode", "resize", "ops", "rest"))
    lines += [
        f"at 3 views a decode: {shares}",
        f"                     {found['floor_share_3']:.0%} of the floor's rate",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
