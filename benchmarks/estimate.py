"""How near `deit-pipeline estimate` is to real runs: three small ones, stage by stage, in core seconds and in bytes.

Each run is estimated, run from beginning to end as commands without Ray, and estimated again; the mean of the two
estimates is compared. Core seconds are those of a command with all its processes, since a machine with other work
changes them little; hours of the clock are printed beside them and prove nothing there. Images are made.

    PYTHONPATH=. python benchmarks/estimate.py --json
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from loader import generate
from safetensors.torch import save_file

from schemas.run_file import parse_run
from schemas.toml_text import toml_text

ROOT = Path(__file__).resolve().parents[1]
_SUBREAPER = 36
"""Of Linux's prctl: processes whose parents have ended become this one's, and so are counted."""
_CLASSES = 8
RUNS: dict[str, dict[str, Any]] = {
    "ViT, hard": {
        "teacher": {"model": "regnety_002"},
        "labels": {"views": 6, "workers": 0},
        "student": {"model": "deit_tiny_distilled_patch16_224"},
        "train": {"epochs": 1, "batch_size": 32, "checkpoint_every": 4, "workers": 0},
    },
    "two data processes": {
        "views": {"image_size": 128},
        "teacher": {"model": "resnet18", "batch_size": 64},
        "labels": {"views": 9, "workers": 2},
        "student": {"model": "vit_tiny_patch16_224"},
        "train": {"epochs": 4, "batch_size": 64, "workers": 2},
    },
    "convnet, every logit": {
        "views": {"image_size": 96},
        "teacher": {"model": "resnet34"},
        "labels": {"views": 15, "workers": 0, "store": "full"},
        "student": {"model": "resnet18"},
        "train": {"epochs": 8, "batch_size": 64, "workers": 0, "distillation": "soft", "ema_decay": 0.0},
    },
}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each probe")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        images = generate(Path(folder, "images"))
        for number, (name, tables) in enumerate(RUNS.items()):
            found[name] = compared(Path(folder, f"run-{number}"), images, tables, arguments.seconds)
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print(json.dumps(found) if arguments.json else report(found))


def compared(folder: Path, images: str, tables: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Estimate, run and estimate again; by stage, what was estimated and what it took."""
    folder.mkdir()
    file = _run_file(folder, images, tables)
    estimates = [_command("estimate", file, "--seconds", str(seconds))[0]]
    real = {verb: _command(verb, file) for verb in ("shard", "label-teacher", "train", "evaluate")}
    estimates.append(_command("estimate", file, "--seconds", str(seconds))[0])
    found = {}
    for verb, (_, cores, clock) in real.items():
        guesses = [3600 * one["stages"][verb]["core_hours"] for one in estimates]
        mean = sum(guesses) / len(guesses)
        found[verb] = {
            "core_seconds": round(cores, 1),
            "estimated": [round(one, 1) for one in guesses],
            "ratio": round(mean / cores, 3),
            "seconds": round(clock, 1),
            "bytes_ratio": _bytes_ratio(folder, verb, estimates[0]),
        }
    return found


def _bytes_ratio(folder: Path, verb: str, estimate: dict[str, Any]) -> float | None:
    """Bytes estimated before anything was there over the bytes that are there now."""
    below = {"shard": "shards", "label-teacher": "labels", "train": "runs"}.get(verb)
    if below is None:
        return None
    there = sum(one.stat().st_size for one in (folder / "workspace" / below).rglob("*") if one.is_file())
    return round(float(estimate["bytes"][verb]) / there, 3)


def _run_file(folder: Path, images: str, tables: dict[str, Any]) -> Path:
    weights = folder / "teacher.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(tables["teacher"]["model"], num_classes=_CLASSES).state_dict(), weights)
    values: dict[str, Any] = {
        "workspace": str(folder / "workspace"),
        "source": {"train": images, "val": images},
        "shards": {"samples_per_shard": 64},
        "cluster": {"address": "inline", "device": "cpu"},
        **tables,
    }
    values["teacher"] = values["teacher"] | {"checkpoint": str(weights)}
    values["train"] = values["train"] | {"validate_every": 0, "reuse_views": True, "warmup_epochs": 0}
    file = folder / "deit.toml"
    file.write_text(toml_text(parse_run(values, "benchmark")))
    return file


def _command(verb: str, file: Path, *options: str) -> tuple[dict[str, Any], float, float]:
    """A command's --json output, core seconds of all its processes, and seconds of the clock."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start, before = time.perf_counter(), _children()
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), verb, "-c", str(file), "--json", *options],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"{verb} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    while True:
        try:
            os.waitpid(-1, 0)  # servers of data processes, which end after their command
        except ChildProcessError:
            break
    return json.loads(done.stdout.splitlines()[-1]), _children() - before, time.perf_counter() - start


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(found: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "| run | stage | core seconds | estimated | estimated / real | bytes, estimated / real |",
        "|---" * 6 + "|",
    ]
    for name, stages in found.items():
        for verb, one in stages.items():
            guesses = " and ".join(map(str, one["estimated"]))
            stored = "" if one["bytes_ratio"] is None else one["bytes_ratio"]
            lines.append(f"| {name} | {verb} | {one['core_seconds']} | {guesses} | {one['ratio']} | {stored} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
