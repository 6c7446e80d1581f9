"""A tiny world for the tests: 61 pictures in 4 classes, run files for it, and ways to look at what stages stored."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from schemas.config import RunFile
from schemas.run_file import parse_run
from schemas.toml_text import toml_text

ROOT = Path(__file__).parents[2]
CLASSES = ("blue", "green", "grey", "red")
COLOURS = {"blue": (40, 60, 220), "green": (40, 190, 60), "grey": (128, 128, 128), "red": (220, 50, 40)}
_PART_SECONDS = 0.02
PAIRS: dict[str, Any] = {"shards": {"samples_per_shard": 2}, "source": {"val": ""}}
"""Settings with which many images become many shards."""
TINY_VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}

SETTINGS: dict[str, Any] = {
    "shards": {"samples_per_shard": 21},
    "views": {"image_size": 32, "repeats": 2},
    "teacher": {"model": "deit_tiny_patch16_224", "extra": TINY_VIT, "checkpoint": "run:teacher", "batch_size": 16},
    "labels": {"views": 6, "passes_per_part": 2, "workers": 0},
    "student": {"model": "deit_tiny_distilled_patch16_224", "extra": TINY_VIT},
    "train": {
        "name": "student", "epochs": 4, "batch_size": 16, "warmup_epochs": 1, "lr": 0.01, "ema_decay": 0.9,
        "workers": 0, "checkpoint_every": 3, "log_every": 2, "window": 2,
        "validate_every": 0,
    },
    "evaluate": {"batch_size": 8},
    "cluster": {"address": "inline", "device": "cpu"},
}  # fmt: skip
"""12 steps of 16 views; checkpoints and lines of metrics do not fall together."""

TEACHER = {
    "student": {"model": "deit_tiny_patch16_224", "extra": TINY_VIT, "drop_path": 0.0},
    "train": {
        "name": "teacher", "epochs": 30, "distillation": "none", "lr": 0.1, "log_every": 30, "checkpoint_every": 90,
    },
}  # fmt: skip
"""Trains the teacher itself."""


def write_images(root: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Write an image folder of smooth random pictures, coloured by class, of many sizes and some other forms."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            coarse = np.clip(random.normal(COLOURS[name], 60, (6, 6, 3)), 0, 255).astype(np.uint8)
            size = tuple(random.integers(30, 60, 2).tolist())
            picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            if number == 2:
                picture = picture.convert("L")
            picture.save(root / name / f"{number:03d}.{'png' if number == 1 else 'jpg'}")


def run_file(workspace: Path | str, images: Path, *changes: dict[str, Any]) -> RunFile:
    """The settings of this world, with changes over them, table by table."""
    values: dict[str, Any] = {"workspace": str(workspace)}
    source = {"source": {"train": str(images / "train"), "val": str(images / "val")}}
    for layer in (SETTINGS, source, *changes):
        for table, keys in layer.items():
            values[table] = values.get(table, {}) | keys
    return parse_run(values, "test")


def silent(line: str) -> None:
    """What a stage says when nobody listens."""


def stored(folder: Path) -> dict[str, bytes]:
    """Path below the folder → bytes, of every file there."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_byte(path: Path, at: int) -> None:
    """Change one bit of one byte in a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def command(*arguments: str, config: RunFile | None = None, folder: Path) -> list[str]:
    """The command line, as the console script runs it; a run file is written where it needs one."""
    if config is not None:
        (folder / "deit.toml").write_text(toml_text(config))
        arguments = (*arguments, "-c", str(folder / "deit.toml"))
    return [sys.executable, "-c", "import cli; cli.main()", *arguments]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def killed_at_random(arguments: list[str], kills: int, done: Callable[[], int], parts: int, seed: int = 0) -> None:
    """Start a command and end it with SIGKILL while it works, again and again from there, and before `parts` are done.

    Each does at least one part and at random some more, and is killed a random moment after that.
    """
    moments = random.Random(seed)
    for _ in range(kills):
        goal = done() + moments.randint(1, max(1, parts // kills // 2))
        process = start(arguments)
        try:
            wait_until(process, lambda goal=goal: done() >= goal)
            time.sleep(moments.uniform(0, _PART_SECONDS))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_until(process: subprocess.Popen[str], seen: Callable[[], Any], seconds: float = 120) -> None:
    """Wait until something is seen while the process runs."""
    end = time.monotonic() + seconds
    while not seen():
        assert process.poll() is None, f"ended before it was seen: {process.communicate()}"
        assert time.monotonic() < end, "was not seen in time"
        time.sleep(0.002)


def decisions(workspace: Path | str, labels: str = "teacher") -> dict[tuple[int, int, int], int]:
    """(shard, row, view) → the teacher's class, read with nothing but a Parquet reader."""
    folder = Path(workspace, "labels", labels)
    tables = [pq.read_table(file).to_pydict() for file in sorted(folder.glob("*.parquet"))]
    columns = ("shard", "row", "view", "decision")
    rows = [row for table in tables for row in zip(*(table[name] for name in columns), strict=True)]
    found = {row[:3]: row[3] for row in rows}
    assert len(found) == len(rows), "an address has two decisions"
    return found
