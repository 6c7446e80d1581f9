"""Steps a second from shards and decisions, against the same student on ready tensors and against online distillation.

All sides take the trainer's own step, in turns, in one process; the loader works in a process of its own:

- ready: one batch, in memory before the clock starts. What no loader can beat.
- pipeline: batches from shards and decisions, as `deit-pipeline train` reads them.
- online: the ready batch, and the teacher's forward pass on its mixed images before every step, as DeiT's authors
  distil; that its images cost nothing flatters it.

The ceiling is what the models' arithmetic allows a training without a teacher to gain: (teacher + student) / student,
in FLOPs counted by torch. Weights are random, and the decisions a small network's: neither changes a step's time.
Peak memory is of a process of its own for each side: resident on a CPU, allocated on a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from pipeline.commands import run as stages
from schemas.config import RunFile
from schemas.run_file import parse_run
from stages.data.loader import load, on_device
from stages.models.classifier import Classifier, build
from stages.replay.mix import mix, normalise
from stages.train.dataset import Batch
from stages.train.plan import plan_training
from stages.train.trainer import Trainer

SIDES = ("ready", "pipeline", "online")
_LABELLER = "test_resnet"


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="source.train: an image folder or archives")
    parser.add_argument("--student", default="deit_tiny_distilled_patch16_224")
    parser.add_argument("--teacher", default="regnety_160", help="of online distillation")
    parser.add_argument("--size", type=int, default=224, help="pixels of a view's side")
    parser.add_argument("--batch", type=int, default=32, help="views of a step")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16", "fp16"))
    parser.add_argument("--steps", type=int, default=3, help="of each side in a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    parser.add_argument("--threads", type=int, default=1, help="of the model, on a CPU")
    parser.add_argument("--only", choices=SIDES, help="one side, for its peak memory")
    parser.add_argument("--workspace", help="where a run before left shards and decisions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(arguments, Path(arguments.workspace or folder))
        print(json.dumps(peak_memory(run, arguments) if arguments.only else measure(run, arguments)))


def prepare(arguments: argparse.Namespace, folder: Path) -> RunFile:
    """Shards and decisions of the images, made where they are missing."""
    weights = folder / "labeller.safetensors"
    if not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        classes = sum(1 for _ in Path(arguments.images).iterdir())
        network = build(_LABELLER, num_classes=classes, img_size=arguments.size, drop_path=0.0, extra={})
        save_file(network.model.state_dict(), weights)
    values = {
        "workspace": str(folder),
        "source": {"train": arguments.images},
        "views": {"image_size": arguments.size},
        "teacher": {"model": _LABELLER, "checkpoint": str(weights)},
        "labels": {"views": 3, "workers": 0},
        "student": {"model": arguments.student},
        "train": {
            "batch_size": arguments.batch,
            "epochs": 1000,
            "validate_every": 0,
            "reuse_views": True,
            "ema_decay": 0.0,
            "precision": arguments.precision,
            "workers": arguments.workers,
        },
        "cluster": {"address": "inline"},
    }
    run = parse_run(values, "benchmark")
    stages.shard(run, _to_stderr)
    stages.label(run, _to_stderr)
    return run


class Sides:
    """Each side's step, over one trainer."""

    def __init__(self, config: RunFile, arguments: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision, plan = config.train.precision, plan_training(config, 1)
        self.trainer = Trainer(config, plan, rank=0, world=1, device=self.device)
        if self.device.type == "cpu":
            torch.set_num_threads(arguments.threads)
        order, pin = range(plan.steps), self.device.type == "cuda"
        batches = load(self.trainer.data, workers=arguments.workers, order=order, pin=pin)
        self.batches = on_device(batches, self.device)
        self.ready_batch: Batch = next(self.batches)
        self._teacher, self._classes, self._size = arguments.teacher, len(plan.split.classes), arguments.size

    @cached_property
    def teacher(self) -> Classifier:
        """Built for the side that needs it."""
        teacher = build(self._teacher, num_classes=self._classes, img_size=self._size, drop_path=0.0, extra={})
        return teacher.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)

    def ready(self) -> None:
        """A step on the ready batch."""
        self.trainer.step(self.ready_batch)

    def pipeline(self) -> None:
        """A step on the stream's next batch."""
        self.trainer.step(next(self.batches))

    def online(self) -> None:
        """The teacher's decisions on the ready batch, then a step on them."""
        self.trainer.step(self.ready_batch._replace(decisions=self.decide()))

    @torch.no_grad()
    def decide(self) -> torch.Tensor:
        """The teacher's classes for the ready batch's mixed images."""
        images = mix(normalise(self.ready_batch.views, self.teacher.mean, self.teacher.std), self.ready_batch.mix)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return self.teacher(images).classes.argmax(1)

    def seconds(self, step: Callable[[], None], count: int) -> float:
        """Wall seconds of a step."""
        self._finish()
        start = time.perf_counter()
        for _ in range(count):
            step()
        self._finish()
        return (time.perf_counter() - start) / count

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(config: RunFile, arguments: argparse.Namespace) -> dict[str, Any]:
    """All sides in turn after a round that is not counted; ratios are medians over rounds.

    Returns:
        pipeline_of_ready: rates, pipeline over ready; pipeline_of_online: pipeline over online; ceiling: the same from
            FLOPs alone; seconds_*: of a step; peak_mib_*; and what was run.
    """
    sides = Sides(config, arguments)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(arguments.rounds + 1):
        for name in SIDES:
            if name == "pipeline":
                for _ in range(arguments.workers * 2 + 1):
                    next(sides.batches)  # what was built ahead while others had their turn does not count
            took = sides.seconds(getattr(sides, name), arguments.steps)
            if turn:
                seconds[name].append(took)
    return {
        "pipeline_of_ready": _ratio(seconds["ready"], seconds["pipeline"]),
        "pipeline_of_online": _ratio(seconds["online"], seconds["pipeline"]),
        "ceiling": round(_flops(sides.online) / _flops(sides.ready), 3),
        **{f"seconds_{name}": round(statistics.median(values), 4) for name, values in seconds.items()},
        **{f"peak_mib_{name}": _peak_of(name, config.workspace) for name in ("pipeline", "online")},
        "device": torch.cuda.get_device_name() if sides.device.type == "cuda" else "cpu",
        **{name: getattr(arguments, name) for name in ("student", "teacher", "size", "batch", "precision")},
        **{name: getattr(arguments, name) for name in ("workers", "threads", "steps", "rounds")},
    }


def peak_memory(config: RunFile, arguments: argparse.Namespace) -> int:
    """MiB at most, of a training process that knows one side only; loader processes are not in it."""
    sides = Sides(config, arguments)
    if sides.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        getattr(sides, arguments.only)()
    if sides.device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    # not getrusage's, which a process that was started takes over from the one that started it
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) >> 10


def _peak_of(side: str, workspace: str) -> int:
    command = [sys.executable, *sys.argv, "--only", side, "--workspace", workspace]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(theirs, ours, strict=True)), 3)


def _flops(step: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
