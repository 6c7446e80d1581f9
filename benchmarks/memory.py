"""Peak memory of one worker process: of the loader in training, and of a part being labelled.

The image folder's files are packed into one shard, several times over where they are fewer than `--samples`. Two
figures of the process that makes the items: the peak of its resident memory, which counts libraries that all
workers share with the server they come from, and the peak of what is its own, which is what one worker more costs.
One worker does all the work: with more, each keeps fewer decoded images.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from schemas.recipe import Recipe
from stages.data.loader import load
from stages.data.split import Split
from stages.label.dataset import LabelDataset
from stages.label.label_set import LabelSpec
from stages.replay.order import Stream
from stages.train.dataset import TrainDataset

RECIPE = Recipe()
Peaks = tuple[int, int]


def main() -> None:
    """Parse the command line, measure, print."""
    from loader import generate, pack  # not above: worker processes run this file's head, and need no timm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="image folder: one folder of JPEG files for each class; default: generated")
    parser.add_argument("--samples", type=int, default=1000, help="images in the shard, at least")
    parser.add_argument("--batch", type=int, default=1024, help="views in a local batch of the trainer")
    parser.add_argument("--teacher-batch", type=int, default=256, help="views in a batch of the teacher")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(arguments.images or generate(Path(folder, "images")))
        links = link(images, Path(folder, "links"), arguments.samples)
        split = pack(str(links), Path(folder, "shards"), samples_per_shard=10**6)
        found = measure(split, arguments.batch, arguments.teacher_batch)
    print(json.dumps(found) if arguments.json else "\n".join(f"{key:20} {value}" for key, value in found.items()))


def link(images: Path, folder: Path, samples: int) -> Path:
    """A folder that shows the images so often that there are enough of them."""
    files = sorted(path for path in images.rglob("*") if path.is_file())
    for number in range(max(samples, len(files))):
        path = files[number % len(files)]
        target = folder / path.parent.name / f"{number // len(files)}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
    return folder


def measure(split: Split, batch: int, teacher_batch: int) -> dict[str, Any]:
    """Peaks in MB (2**20 bytes) of a loader worker in four batches, and of a label worker in one pass."""
    stream = Stream(split.rows, repeats=RECIPE.repeats, window=16, recipe_seed=0, seed=0)
    steps = TrainDataset(split, RECIPE, stream, None, batch=batch, rank=0, world=1)
    part = LabelDataset(split, RECIPE, teacher_batch)
    found: dict[str, Any] = {"samples": len(split)}
    for name, items in {
        "loader_worker": load(Watched(steps), workers=1, order=range(4)),
        "label_worker": load(Watched(part), workers=1, order=part.order(LabelSpec(0, 0, 1), 1)),
    }.items():
        *_, (resident, own) = (peaks for _, peaks in items)
        found |= {f"{name}_resident_mb": resident, f"{name}_own_mb": own}
    return found


class Watched(Dataset[Any]):
    """Items, each with the peaks of the process that made it."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, number: Any) -> tuple[Any, Peaks]:
        return self.dataset[number], watch()


_peaks: list[int] = []


def watch() -> Peaks:
    """This process's peaks in MB, resident and own, the latter looked at every 20 ms since the first call."""
    if not _peaks:
        _peaks.append(0)
        threading.Thread(target=_look, daemon=True).start()
    return _kilobytes("status", ("VmHWM:",)) >> 10, _peaks[0] >> 10


def _look() -> None:
    while True:
        _peaks[0] = max(_peaks[0], _kilobytes("smaps_rollup", ("Private_Clean:", "Private_Dirty:")))
        time.sleep(0.02)


def _kilobytes(file: str, keys: tuple[str, ...]) -> int:
    lines = Path("/proc/self", file).read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(keys))


if __name__ == "__main__":
    main()
