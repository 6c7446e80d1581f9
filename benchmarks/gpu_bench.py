"""What the sections of benchmarks/gpu.py share: the data they work on, timing, and processes of their own.

Nothing here opens the GPU when it is imported, and sections that start forks never open it themselves.
"""

import itertools
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from pipeline.commands import run as stages
from schemas.config import RunFile
from schemas.run_file import parse_run

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = {"ti": "deit_tiny", "s": "deit_small", "b": "deit_base"}
_IMAGES = 2304
"""At least, so that the largest batch is no more than an epoch: photographs are copied until there are."""
TOY_VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


Variant = Callable[[], dict[str, Any]]
"""What is measured in one process; its figures."""


@dataclass(frozen=True)
class Bench:
    """Where sections work, on what, and how large.

    Attributes:
        folder: for images and workspaces.
        photographs: a folder of one folder a class; "" = pictures are made.
        weights: of tf_efficientnet_lite0; "" = random ones.
        toy: the size at which a CPU takes seconds.
    """

    folder: Path
    photographs: str
    weights: str
    toy: bool

    @cached_property
    def device(self) -> torch.device:
        """Of this process; asked for in a section only."""
        return torch.device("cpu" if self.toy else "cuda")

    @property
    def side(self) -> int:
        """Of a view, in pixels."""
        return 32 if self.toy else 224

    @property
    def workers(self) -> int:
        """Data processes: all cores but the one that drives the GPU; none at toy size, where they take longest."""
        return 0 if self.toy else max(1, len(os.sched_getaffinity(0)) - 1)

    def batch(self, size: str) -> int:
        """Views of a step, which fit the memory of an 80 GB card in fp32."""
        return 8 if self.toy else {"ti": 1024, "s": 1024, "b": 512}[size]

    def student(self, size: str) -> dict[str, Any]:
        """The run file's [student] of a distilled student."""
        return {"model": f"{STUDENTS[size]}_distilled_patch16_224", "extra": TOY_VIT if self.toy else {}}

    def teacher(self, name: str) -> dict[str, Any]:
        """The run file's [teacher] of a network, with random weights unless they were given."""
        if self.weights and name == "tf_efficientnet_lite0":
            model, file = name, self.weights
        else:
            model = ("test_byobnet" if name.startswith("regnety") else "test_efficientnet") if self.toy else name
            file = str(self._random(model))
        return {"model": model, "checkpoint": file, "batch_size": 8 if self.toy else 256}

    def _random(self, model: str) -> Path:
        path = self.folder / f"{model}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(timm.create_model(model, num_classes=self.classes).state_dict(), path)
        return path

    @property
    def classes(self) -> int:
        """Of the photographs: ImageNet's if they are in folders of its names, so that the weights fit."""
        return 1000 if self.photographs else 8

    @cached_property
    def source(self) -> list[Path]:
        """The photographs, or pictures that are made; a few of each class at toy size."""
        from loader import generate  # asks for a GPU when it is imported, which must not be before the fork

        files = files_in(Path(self.photographs or generate(self.folder / "generated")))
        return files[:: len(files) // 16] if self.toy else files

    def images(self, copies: int) -> str:
        """An image folder with so many copies of each photograph, under names of their own."""
        target = self.folder / f"images-{copies}"
        if not target.exists():
            half = Path(f"{target}.part")
            shutil.rmtree(half, ignore_errors=True)
            for file, copy in itertools.product(self.source, range(copies)):
                path = half / file.parent.name / f"{copy:03d}-{file.name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, path)
            half.replace(target)
        return str(target)

    def run_file(self, name: str, *, copies: int = 0, **tables: dict[str, Any]) -> RunFile:
        """A run file over the photographs, with changes table by table."""
        enough = 1 if self.toy else math.ceil(_IMAGES / len(self.source))
        values: dict[str, Any] = {
            "source": {
                "train": self.images(copies or enough),
                "classes": "imagenet-1k" if self.photographs else "",
            },
            "shards": {"samples_per_shard": 64 if self.toy else 512},
            "views": {"image_size": self.side},
            "teacher": self.teacher("tf_efficientnet_lite0"),
            "labels": {"views": 3, "workers": self.workers},
            "student": self.student("ti"),
            "train": {
                "batch_size": self.batch("ti"),
                "epochs": 1000,
                "reuse_views": True,
                "validate_every": 0,
                "workers": self.workers,
            },
            "cluster": {"address": "inline"},
        }
        for table, keys in tables.items():
            values[table] = values.get(table, {}) | keys
        return parse_run({"workspace": str(self.folder / name), **values}, "benchmark")

    def prepared(self) -> RunFile:
        """A run file whose photographs are sharded and labelled, the first time it is asked for."""
        run = self.run_file("work")
        if not Path(run.workspace, "labels/teacher/manifest.json").exists():
            stages.shard(run, say)
            stages.label(run, say)
        return run


def files_in(folder: Path) -> list[Path]:
    """The JPEG files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def say(line: str) -> None:
    """Where a stage's lines go: stderr."""
    print(line, file=sys.stderr, flush=True)


def changed(config: RunFile, **tables: dict[str, Any]) -> RunFile:
    """A run file with other values for some keys, table by table; nothing is checked again."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=keys) for name, keys in tables.items()}
    )


def wait() -> None:
    """Until the GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(do: Callable[[], Any], *, count: int, turns: int = 3, warm_up: int = 3) -> float:
    """Seconds of one call: median over turns of `count` calls each, between synchronisations, after warming up."""
    for _ in range(warm_up):
        do()
    took = []
    for _ in range(turns):
        wait()
        start = time.perf_counter()
        for _ in range(count):
            do()
        wait()
        took.append((time.perf_counter() - start) / count)
    return statistics.median(took)


def peak_mib() -> int | None:
    """The most memory of the GPU that this process had; None on a CPU."""
    return torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else None


def figures(do: Callable[[Bench], dict[str, Any]]) -> Callable[[Bench], dict[str, Any]]:
    """A section as it is recorded."""
    return lambda bench: {"figures": do(bench)}


def attempt(do: Variant) -> dict[str, Any]:
    """A variant's figures, or what it failed of: the next one is tried all the same."""
    try:
        return do()
    except Exception as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {"error": f"{type(error).__name__}: {str(error).strip()[-300:]}"}


def at_once(wanted: dict[str, Variant]) -> dict[str, Any]:
    """What several functions return, each in a fork."""
    context = multiprocessing.get_context("fork")
    pipes = {name: context.Pipe(duplex=False) for name in wanted}
    children = {name: context.Process(target=_child, args=(wanted[name], pipes[name][1])) for name in wanted}
    for name, child in children.items():
        child.start()
        pipes[name][1].close()
    found = {}
    for name, child in children.items():
        try:
            found[name] = pipes[name][0].recv()
        except EOFError:
            child.join()
            found[name] = {"error": f"its process ended with {child.exitcode}"}
        child.join()
    return found


def _child(do: Variant, answer: Any) -> None:
    answer.send(attempt(do))
    answer.close()
    os._exit(0)


def in_child(do: Variant) -> dict[str, Any]:
    """What a function returns that opens the GPU in a fork of this process, which does not."""
    found: dict[str, Any] = at_once({"it": do})["it"]
    return found
