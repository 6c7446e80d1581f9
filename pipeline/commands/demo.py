"""The demo: all stages on a small scale, on real handwritten digits, without network or GPU.

Its teacher is trained here by the train stage itself, on the same data with the same augmentation, as the paper's was.
Then two students of one architecture are trained alike, one from the teacher's decisions and one without, so
that the table shows what the decisions are worth. It is an ordinary workspace: run file, stages, resume. Sharding and
labelling run as the address says, the trainings in processes of this machine: Ray Train would spend much of the demo's
time on starting.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.commands.run import evaluate, label, shard, train
from pipeline.execution.ray_session import INLINE
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.paths import local_path
from schemas.run_file import parse_run
from schemas.toml_text import toml_text
from stages.replay.draws import Draws, Purpose

_TRAIN_IMAGES = 1500
_SIDE = 32

_EPOCHS = {"teacher": 13, "with-teacher": 40, "without-teacher": 40}
_STUDENT = {"depth": 4, "embed_dim": 96, "num_heads": 3, "patch_size": 8}
_RUNS = ("teacher", "without-teacher", "with-teacher")


def demo(folder: str, address: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all stages on scikit-learn's digits below `folder`, and show the table.

    Raises:
        UserError: if scikit-learn is missing, or as a stage raised it.
    """
    root = local_path(folder, "--folder")
    write_digits(root / "images")
    files = {name: _run_file(root, name, address) for name in _RUNS}
    for name, run in files.items():
        (root / f"{name}.toml").write_text(toml_text(run), encoding="utf-8")
    return _stages(files, root, say)


def write_digits(root: Path) -> None:
    """Write scikit-learn's 1,797 digits as an image folder, 1,500 for training and the rest for validation.

    Raises:
        UserError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("demo: its digits come with scikit-learn; pip install 'deit-pipeline[demo]'") from None
    digits = load_digits()
    order = Draws(0, Purpose.SHUFFLE).at(0).permutation(len(digits.images))  # they come sorted by writer
    for place, number in enumerate(order.tolist()):
        pixels_HW, digit = digits.images[number], digits.target[number]
        split = "train" if place < _TRAIN_IMAGES else "val"
        path = root / split / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels_HW * (255 / 16)).astype(np.uint8))
        grey.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path)


def _stages(files: dict[str, RunFile], root: Path, say: Callable[[str], None]) -> dict[str, Any]:
    results: dict[str, Any] = {"shard": shard(files["teacher"], say)}
    # Neither needs the other, and so small a model keeps one core busy: they are trained side by side.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        for line in processes.map(_train, [files["teacher"], files["without-teacher"]]):
            say(line)
    results["label-teacher"] = label(files["with-teacher"], say)
    say(_train(files["with-teacher"]))
    for name, run in files.items():
        results[name] = evaluate(run, lambda _: None)
    for line in _table(results, root):
        say(line)
    return {"stage": "demo", "folder": str(root)} | results


def _train(config: RunFile) -> str:
    """Train in this process; returns the line with the result."""
    lines: list[str] = []
    train(config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": INLINE})}), lines.append)
    return lines[-1]


def _run_file(root: Path, name: str, address: str) -> RunFile:
    distils, teaches = name == "with-teacher", name == "teacher"
    student = {"model": "deit_tiny_distilled_patch16_224", "extra": _STUDENT}
    teacher = {"model": "regnety_002", "extra": {}}
    chosen = teacher if teaches else student
    values = {
        "workspace": str(root),
        "source": {"train": str(root / "images" / "train"), "val": str(root / "images" / "val")},
        "shards": {"samples_per_shard": 250},
        "views": {
            "image_size": _SIDE,
            "repeats": 1,
            "scale": [0.7, 1.0],
            "flip_prob": 0.0,
            "rand_augment": "rand-m2-n1-p0.3-mstd0.5-inc1",
            "erasing_prob": 0.05,
            "mix_prob": 0.2,
        },
        "teacher": teacher | {"checkpoint": "run:teacher", "batch_size": 250},
        "labels": {"name": "teacher", "views": 40, "passes_per_part": 10, "workers": 0},
        "student": chosen | {"drop_path": 0.0},
        "train": {
            "name": name,
            "epochs": _EPOCHS[name],
            "batch_size": 50,
            "lr": 1.5e-2,
            "warmup_epochs": 3,
            "ema_decay": 0.0,
            "distillation": "hard" if distils else "none",
            "workers": 1,
            "log_every": 30,
            "checkpoint_every": 300,
        },
        "evaluate": {"crop_pct": 1.0},
        "cluster": {"address": address},
    }
    return parse_run(values, "demo")


def _table(results: dict[str, Any], root: Path) -> list[str]:
    taught, alone = results["with-teacher"], results["without-teacher"]
    rows = [
        ("teacher, RegNetY", results["teacher"]["class"]),
        ("student without the teacher", alone["class"]),
        ("student, class head", taught["class"]),
        ("student, distillation head", taught["distillation"]),
        ("student, mean of logits", taught["fused"]),
        ("student, sum of softmaxes", taught["fused_softmax"]),
    ]
    lines = ["", f"{taught['samples']} digits none of them was trained on:", f"{'':30}{'top-1':>8}{'top-5':>8}"]
    lines += [f"{what:30}{figures['top1']:>8.1%}{figures['top5']:>8.1%}" for what, figures in rows]
    places = {
        "images": root / "images",
        "shards": root / "shards",
        "decisions": root / "labels" / "teacher",
        "models": root / "runs",
        "run files": root / "*.toml",
    }
    return [*lines, "", *(f"{what:10} {place}" for what, place in places.items())]
