"""Decisions per second of the label stage, against its own teacher on ready tensors and against labelling online.

All three sides take the same teacher in the same process and the same number of data processes, in turn:
ready = the teacher's forward pass on views that lie in memory, mixed as labelling mixes them; ours = the label stage's
batches, made while the teacher works, and its decisions; online = timm's transform as DeiT builds it, decoding for
every view, timm's mixup, and the same forward pass. The first batch of each side, for which processes start, is not
counted. On a CPU data processes and teacher share the cores, so that ours can come near to ready only where a view
costs little beside a forward pass: name a teacher that is slow enough with --teacher.

    python benchmarks/label.py -c photos.toml --teacher regnety_160 --batch 16 --batches 6
"""

import argparse
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from replay import TIMM
from safetensors.torch import save_file
from timm.data import Mixup
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from schemas.config import RunFile
from schemas.run_file import load_run_file
from stages.data.split import Split
from stages.label.encoding import keep
from stages.label.label_set import LabelSpec
from stages.label.labeller import Labeller


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True, help="a run file whose images are sharded")
    parser.add_argument("--teacher", default="", help="a timm model with random weights in place of the run file's")
    parser.add_argument("--batch", type=int, default=64, help="views in a forward pass")
    parser.add_argument("--batches", type=int, default=10, help="of each side in each round")
    parser.add_argument("--workers", type=int, default=1, help="data processes")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    run = load_run_file(
        arguments.config, [f"teacher.batch_size={arguments.batch}", f"labels.workers={arguments.workers}"]
    )
    split = Split.open(run.workspace, "train")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.teacher:
            run = _with_teacher(run, arguments.teacher, Path(folder), len(split.classes))
        labeller = Labeller(run, split, "cuda" if torch.cuda.is_available() else "cpu")
        found = {"teacher": run.teacher.title} | measure(labeller, arguments.batches, arguments.rounds)
    print(json.dumps(found) if arguments.json else report(found))


def measure(labeller: Labeller, batches: int, rounds: int) -> dict[str, Any]:
    """Views a second of each side, medians over rounds of `batches` batches each."""
    ready = next(ours(labeller))
    sides: dict[str, Callable[[], Iterator[tuple[Tensor, Any]]]] = {
        "ready": lambda: itertools.repeat(ready),
        "ours": lambda: ours(labeller),
        "online": lambda: online(labeller),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            rates[name].append(rate(labeller, side(), batches, forward_online if name == "online" else forward))
    found = {name: statistics.median(values) for name, values in rates.items()}
    return found | {"of_ready": found["ours"] / found["ready"], "times_online": found["ours"] / found["online"]}


def rate(labeller: Labeller, source: Iterator[Any], batches: int, step: Callable[..., None]) -> float:
    """Views a second over `batches` batches after the first."""
    step(labeller, *next(source))
    start, views = time.perf_counter(), 0
    for batch in itertools.islice(source, batches):
        step(labeller, *batch)
        views += len(batch[0])
    return views / (time.perf_counter() - start)


def ours(labeller: Labeller) -> Iterator[tuple[Tensor, Any]]:
    """Views and mixes as the label stage makes them, pass after pass of the first shard."""
    for batch in labeller.batches(LabelSpec(0, 0, 100)):
        yield batch.views, batch.mixes


def forward(labeller: Labeller, views: Tensor, mixes: Any) -> None:
    """A batch's decisions, to the columns that are stored."""
    keep(labeller.teacher.logits(views, mixes), labeller.settings, labeller.tau)["decision"].cpu()


def online(labeller: Labeller) -> Iterator[tuple[Tensor, Any]]:
    """Normalised views as DeiT's loader makes them, decoded one by one, and their classes."""
    data = OnlineViews(labeller.split)
    workers = labeller.settings.processes
    loader = DataLoader(
        data,
        batch_size=labeller.teacher.settings.batch_size,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )
    return iter(loader)


def forward_online(labeller: Labeller, images: Tensor, classes: Tensor) -> None:
    """Timm's mixup, then the decisions."""
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=labeller.classes)
    device = labeller.teacher.device
    with torch.inference_mode():
        mixed, _ = mixup(images.to(device), classes.to(device))
        labeller.teacher.models[0](mixed.to(memory_format=torch.channels_last)).fused.argmax(1).cpu()


class OnlineViews(Dataset[tuple[Tensor, int]]):
    """A hundred passes over the first shard, each view decoded and transformed on its own."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return 100 * self.split.rows[0]

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        """One view and its class."""
        row = number % self.split.rows[0]
        torch.set_num_threads(1)
        image = Image.open(io.BytesIO(self.split.image(0, row))).convert("RGB")
        return TIMM(image), int(self.split.index(0).classes[row])


def _with_teacher(config: RunFile, model: str, folder: Path, classes: int) -> RunFile:
    weights = folder / "random.safetensors"
    save_file(timm.create_model(model, num_classes=classes).state_dict(), weights)
    settings = {"model": model, "checkpoint": str(weights), "extra": {}}
    return config.model_copy(update={"teacher": config.teacher.model_copy(update=settings)})


def report(found: dict[str, Any]) -> str:
    """The figures as lines to read."""
    return "\n".join(
        [
            f"teacher {found['teacher']}",
            f"ready tensors   {found['ready']:8.1f} views/s",
            f"label stage     {found['ours']:8.1f} views/s   {found['of_ready']:.0%} of ready tensors",
            f"online, timm    {found['online']:8.1f} views/s   {found['times_online']:.2f} times as fast is ours",
        ]
    )


if __name__ == "__main__":
    main()
