"""Offline equals online: a student trained from stored decisions against one with the teacher in every step.

    python benchmarks/parity.py                # made pictures, a small convnet that is trained on them first
    python benchmarks/parity.py --images imagenet_sample_train.tar --classes imagenet-1k --size 224 --batch 32 \
        --teacher tf_efficientnet_lite0 --checkpoint tf_efficientnet_lite0.safetensors

All on the CPU, in fp32, over one stream of views:

- offline: shard, label-teacher and the trainer, which sees stored decisions and no teacher;
- online: the same trainer, whose every step runs the teacher on the batch before it; no label set is opened;
- two ranks: both again, by two processes that torch.distributed joins;
- the authors' formula: online by a plain loop of timm and torch, its loss written from the paper's equation.

The teacher meets other batches in the loop than it met while labelling (a shard's pass there, the stream here), so that
equal decisions are found, not arranged. Compared are the decision of every view and the sha256 of the student's
weights, at a quarter, a half, three quarters and all of the steps. Exit code 1 where anything differs.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import online
import torch.distributed as dist
from golden import write_images

from pipeline.commands import run as stages
from schemas.config import RunFile
from schemas.run_file import load_run_file, parse_run
from schemas.toml_text import toml_text
from stages.data.split import Split
from stages.label.label_set import LabelSet
from stages.storage.store import Store
from stages.train.checkpoint import FOLDER
from stages.train.loop import train

REPEATS = 3
STUDENT = {"depth": 4, "embed_dim": 96, "num_heads": 3}


def main() -> None:
    """Parse the command line, train all ways, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="source.train, any form; without it pictures are made")
    parser.add_argument("--classes", default="", help="source.classes")
    parser.add_argument("--teacher", default="test_resnet", help="any timm classifier")
    parser.add_argument("--checkpoint", default="", help="its weights; without it, it is trained here first")
    parser.add_argument("--size", type=int, default=32, help="side of a view in pixels")
    parser.add_argument("--batch", type=int, default=16, help="global batch, a multiple of 4")
    parser.add_argument("--steps", type=int, default=200, help="of each training, a multiple of 4")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    if arguments.steps % 4 or arguments.batch % 4:
        parser.error("--steps and --batch: must be multiples of 4")
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        found = parity(run_file(arguments, Path(folder)), Path(folder))
    found |= {"teacher": arguments.teacher, "size": arguments.size, "batch": arguments.batch} | machine()
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(report(found))
    sys.exit(0 if found["equal"] else 1)


def run_file(arguments: argparse.Namespace, folder: Path) -> RunFile:
    """The run; its images are made where none are named."""
    if not arguments.images:
        write_images(folder / "images")
    patch = 16 if arguments.size >= 128 else arguments.size // 4
    values = {
        "workspace": str(folder / "workspace"),
        "source": {"train": arguments.images or str(folder / "images/train"), "classes": arguments.classes},
        "shards": {"samples_per_shard": 100 if arguments.images else 11},
        "views": {"image_size": arguments.size, "repeats": REPEATS},
        "teacher": {
            "model": arguments.teacher,
            "checkpoint": arguments.checkpoint or "run:teacher",
            "batch_size": 2 * arguments.batch,
            "precision": "fp32",
        },
        "labels": {"views": REPEATS, "passes_per_part": 1},
        "student": {"model": "deit_tiny_distilled_patch16_224", "extra": STUDENT | {"patch_size": patch}},
        "train": {
            "name": "offline",
            "epochs": 1000,
            "validate_every": 0,
            "max_steps": arguments.steps,
            "batch_size": arguments.batch,
            "warmup_epochs": 2,
            "lr": 1e-2,
            "precision": "fp32",
            "checkpoint_every": arguments.steps // 4,
            "keep_checkpoints": 4,
            "workers": 2,
        },
        "cluster": {"address": "inline", "device": "cpu"},
    }
    return parse_run(values, "parity")


def parity(run: RunFile, folder: Path) -> dict[str, Any]:
    """Train all ways and compare.

    Returns:
        `equal`: whether nothing differs; `ways`: for each, decisions compared and different, and the steps at which
        weights were compared and were different; and what was run.
    """
    run = _prepare(run)
    stages.train(run, _say)
    stored = _labels(run)
    _say("online ...")
    ways = {"one process": compare(online.by_trainer(run), checkpoints(run), stored)}
    _say("online, the authors' formula ...")
    ways["the authors' formula"] = compare(online.by_authors_formula(run), checkpoints(run), stored)
    _say("two ranks ...")
    by_two = _with(run, "train", name="by-two", workers=1)
    ways["two ranks"] = compare(_two_ranks(by_two, folder), checkpoints(by_two), stored)
    return {
        "equal": all(not way["decisions_different"] and not way["weights_different_at"] for way in ways.values()),
        "steps": run.train.max_steps,
        "ways": ways,
        "one_process_and_two_ranks_equal": checkpoints(run) == checkpoints(by_two),
        "images": len(Split.open(run.workspace, "train")),
        "classes": len(Split.open(run.workspace, "train").classes),
        "distinct_decisions": len(set(stored.values())),
    }


def compare(walk: online.Walk, weights: dict[int, str], stored: dict[online.Address, int]) -> dict[str, Any]:
    """How a training with the teacher in the loop differs from stored decisions and from the weights they led to."""
    if not walk.decisions or not weights or walk.weights.keys() != weights.keys():
        raise RuntimeError(f"nothing to compare: {len(walk.decisions)} decisions, weights at {sorted(weights)}")
    different = [at for at, decision in walk.decisions.items() if stored.get(at) != decision]
    return {
        "decisions": len(walk.decisions),
        "decisions_different": len(different),
        "weights_compared_at": sorted(weights),
        "weights_different_at": sorted(step for step in weights if weights[step] != walk.weights[step]),
        "weights_sha256": walk.weights[max(weights)],
    }


def checkpoints(run: RunFile) -> dict[int, str]:
    """Number of steps → sha256 of the weights, of all checkpoints of a run."""
    store = Store(run.workspace).child(f"runs/{run.train.name}/{FOLDER}")
    weights = {part: store.read(f"{part}/model.safetensors") for part in store.folders()}
    return {int(part.removeprefix("step-")): hashlib.sha256(data).hexdigest() for part, data in weights.items()}


def _prepare(run: RunFile) -> RunFile:
    """Shards, the teacher and its labels, as many views as the steps need; the run file with that number."""
    stages.shard(run, _say)
    if run.teacher.checkpoint == "run:teacher":
        teacher = _with(run, "student", model=run.teacher.model, extra={}, drop_path=0.0)
        settings = {"name": "teacher", "distillation": "none", "lr": 0.1, "ema_decay": 0.0}
        stages.train(_with(teacher, "train", **settings), _say)
    pairs = Split.open(run.workspace, "train").pairs
    passes = math.ceil(run.train.max_steps * run.train.batch_size / (2 * REPEATS * pairs))
    run = _with(run, "labels", views=REPEATS * passes)
    stages.label(run, _say)
    return run


def _labels(run: RunFile) -> dict[online.Address, int]:
    """Every stored decision, by address."""
    split = Split.open(run.workspace, "train")
    labels = LabelSet.open(run, split)
    found: dict[tuple[int, int, int], int] = {}
    for shard, rows in enumerate(split.rows):
        for view in range(run.labels.views):
            part = labels.of(shard, view)
            places = part.place[:, view - part.first_view].tolist()
            decisions = part.columns["decision"]
            found |= {(shard, row, view): int(decisions[places[row]]) for row in range(rows) if places[row] >= 0}
    return found


def _two_ranks(run: RunFile, folder: Path) -> online.Walk:
    """Train offline, then online, by two processes; the decisions of both."""
    file = folder / "by-two.toml"
    file.write_text(toml_text(run), encoding="utf-8")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        one, other = processes.map(_rank, range(2), [file] * 2)
    if one.weights != other.weights:
        raise RuntimeError("two ranks ended with different weights")
    return online.Walk(one.decisions | other.decisions, one.weights)


def _rank(rank: int, file: Path) -> online.Walk:
    run = load_run_file(str(file), [])
    dist.init_process_group("gloo", init_method=f"file://{file}.meeting", rank=rank, world_size=2)
    train(run, rank=rank, world=2, device=online.CPU, report=lambda step, metrics: False)
    walk = online.by_trainer(run, rank=rank, world=2)
    dist.destroy_process_group()
    return walk


def machine() -> dict[str, Any]:
    """What the figures were made with."""
    names = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless")
    return {"versions": {name: version(name) for name in names}, "python": platform.python_version()}


def report(found: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        f"{found['teacher']} on {found['images']} images of {found['classes']} classes, {found['size']} pixels, "
        f"{found['steps']} steps of {found['batch']} views, {found['distinct_decisions']} classes decided for:",
        "",
        "| teacher in the loop | decisions | different | weights compared after steps "
        "| different | sha256 at the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, way in found["ways"].items():
        steps = ", ".join(map(str, way["weights_compared_at"]))
        lines.append(
            f"| {name} | {way['decisions']:,} | {way['decisions_different']} | {steps} | "
            f"{len(way['weights_different_at'])} | {way['weights_sha256'][:16]} |"
        )
    return "\n".join(lines)


def _with(run: RunFile, table: str, **values: Any) -> RunFile:
    return run.model_copy(update={table: getattr(run, table).model_copy(update=values)})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
