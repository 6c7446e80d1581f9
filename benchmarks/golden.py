"""Checksums of everything that a tiny whole run stores: equal before and after a change of form, on one machine.

    python benchmarks/golden.py --json before.json      # in the old checkout
    python benchmarks/golden.py --compare before.json   # in the new one: exit code 1 and one line a difference

Sharding, labelling (hard and top-k) by a small convnet, training with and without its labels and evaluation are run
inline, on the CPU and in fp32, in a temporary folder. Only the command line is used, so the same file runs on either
side of a refactoring. Sums hold for one machine and one set of library versions.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # of data workers too: else an installed version of the package would make views
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cli  # noqa: E402

CONVNET = "test_resnet"
RUN_FILE = """
workspace = "workspace"
[source]
train = "images/train"
val = "images/val"
[shards]
samples_per_shard = 11
[views]
image_size = 32
repeats = 2
[teacher]
model = "{convnet}"
checkpoint = "run:teacher"
batch_size = 16
precision = "fp32"
compile = false
[labels]
views = 6
passes_per_part = 2
topk = 3
workers = 1
[student]
model = "deit_tiny_distilled_patch16_224"
extra = {{ patch_size = 8, embed_dim = 48, depth = 2, num_heads = 3 }}
[train]
epochs = 6
max_steps = 12
batch_size = 16
warmup_epochs = 1
lr = 0.01
ema_decay = 0.9
workers = 0
checkpoint_every = 5
log_every = 2
window = 2
precision = "fp32"
compile = false
[evaluate]
batch_size = 8
[cluster]
address = "inline"
device = "cpu"
"""
TEACHER = ["student.model={convnet}", "student.extra={{}}", "student.drop_path=0", "train.name=teacher", "train.lr=0.1"]
TOPK = ["labels.name=topk", "labels.store=topk"]
COMMANDS: list[tuple[str, list[str]]] = [
    ("shard", []),
    ("train", [*TEACHER, "train.distillation=none"]),
    ("label-teacher", []),
    ("label-teacher", TOPK),
    ("train", ["train.name=hard", "train.workers=1"]),
    ("train", ["train.name=soft", "train.distillation=soft", *TOPK]),
    ("train", ["train.name=alone", "train.distillation=none"]),
    ("evaluate", ["train.name=hard"]),
    ("evaluate", ["train.name=alone"]),
]
"""Each command and its `--set`s; the teacher is a run of this workspace, trained here first."""

NOT_COMPARED = ("runs/*/metrics.jsonl", "shards/listed.json", "hours/*/*/*.jsonl")
"""Files that hold what the clock said (a checkpoint has the same lines without it), and absolute paths."""


def main() -> None:
    """Parse the command line, run, print or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write path → sha256 there as well")
    parser.add_argument("--compare", metavar="FILE", help="an earlier --json; exit code 1 where anything differs")
    arguments = parser.parse_args()
    known = json.loads(Path(arguments.compare).read_text()) if arguments.compare else None
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        sums = golden(Path(folder))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(sums, indent=1) + "\n")
    if known is None:
        print("\n".join(f"{sum_}  {path}" for path, sum_ in sums.items()))
        return
    for line in (found := differences(known, sums)):
        print(line)
    print(f"{len(sums)} files, {len(found)} differ")
    sys.exit(1 if found else 0)


def golden(folder: Path) -> dict[str, str]:
    """Run everything in an empty folder; path below the workspace → hex sha256 of each file that is stored.

    Paths in the run file are relative, so that stored run files do not depend on where the folder is.
    """
    write_images(folder / "images")
    (folder / "deit.toml").write_text(RUN_FILE.format(convnet=CONVNET))
    with contextlib.chdir(folder):
        for verb, settings in COMMANDS:
            command(verb, settings)
    return checksums(folder / "workspace")


def command(verb: str, settings: list[str]) -> None:
    """Run one command in this process; what it says goes to stderr.

    Raises:
        RuntimeError: if it did not end well.
    """
    sets = [word for one in settings for word in ("--set", one.format(convnet=CONVNET))]
    with contextlib.redirect_stdout(sys.stderr):
        code: Any = cli.app([verb, *sets], standalone_mode=False)
    if code:
        raise RuntimeError(f"{verb} {settings}: exit code {code}")


def write_images(folder: Path) -> None:
    """An image folder of smooth random pictures in four classes: 36 to train, 12 to evaluate, JPEG and PNG."""
    random = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 3)):
        for colour, name in enumerate(("blue", "green", "grey", "red")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                coarse = random.integers(0, 256, (6, 6, 3))
                coarse[..., colour % 3] //= 2 + colour
                height, width = random.integers(30, 60, 2).tolist()
                picture = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
                picture.save(folder / split / name / f"{number}.{'png' if number == 1 else 'jpg'}")


def checksums(folder: Path) -> dict[str, str]:
    """Path below the folder → hex sha256, of every file there that is the same wherever and whenever it is made."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        path.as_posix(): hashlib.sha256((folder / path).read_bytes()).hexdigest()
        for path in paths
        if not any(map(path.match, NOT_COMPARED))
    }


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One line for each file that is missing, new or of other bytes."""
    lines = [f"{path}: is missing" for path in before if path not in after]
    lines += [f"{path}: is new" for path in after if path not in before]
    return lines + [f"{path}: has other bytes" for path in before if path in after and before[path] != after[path]]


if __name__ == "__main__":
    main()
