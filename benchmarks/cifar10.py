"""The paper's Table 3 in small, on CIFAR-10: a RegNetY teacher trained here, and one small DeiT in seven rows.

    PYTHONPATH=. python benchmarks/cifar10.py --images cifar10.tar

The tar holds an image folder, train/<class>/NNNN.jpg and test/<class>/NNNN.jpg. The whole pipeline runs as a user's
would: shard, train the teacher with the students' augmentation, label every view of every epoch once, train the rows at
equal epochs, evaluate on all test images. Rerun the same command to resume: each stage resumes from what is stored.
Every training has a process of its own; after each one docs/evidence/cifar10.json, .md and .png are written anew.

The profile decides sizes, and was decided before any accuracy was seen. A machine with a GPU takes "gpu", all 50,000
images for 100 epochs; any other takes "cpu", which fits about an hour and a quarter of one core. See `PROFILES`.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Profile:
    """Sizes of one setting.

    Attributes:
        images: training images of each class, the first by name; 0 = all.
        per_shard: images in a shard.
        views: augmentation of teacher and students alike, keys of `[views]`.
        teacher: timm model and arguments.
        teacher_epochs: of the teacher's own training.
        student: arguments of timm's deit_tiny.
        epochs: of every row, and views labelled of each image.
        batch: global batch of all trainings.
        lr: peak learning rate of all trainings, as it is.
        warmup: epochs.
        points: epochs after which the first seed of a row is evaluated as well.
        workers: data processes of a training; "auto" = the machine's cores.
    """

    images: int
    per_shard: int
    views: dict[str, Any]
    teacher: dict[str, Any]
    teacher_epochs: int
    student: dict[str, Any]
    epochs: int
    batch: int
    lr: float
    warmup: int
    points: tuple[int, ...]
    workers: int | str


_MILD = {
    "image_size": 32, "repeats": 1, "scale": [0.5, 1.0], "rand_augment": "rand-m5-n1-p0.5-mstd0.5-inc1",
    "erasing_prob": 0.1, "mix_prob": 0.5,
}  # fmt: skip
_STRIDE_8 = {"output_stride": 8}  # RegNetY's 32 would leave one position of a 32-pixel image, and its 3x3 kernels idle

PROFILES = {
    # Views a second of one core of the machine on which the sizes were decided, forward and backward in fp32: dim 64,
    # depth 4: 310; dim 96, depth 4: 165; dim 128, depth 6: 90; regnety_002 at stride 8: 120; the one below: about 400.
    # With the data path, and other work on the machine's second core, a run trains 190 a second: eleven trainings of
    # 60,000 views are 58 minutes, the teacher 7, labels and evaluations 5. Wider students would leave a third of the
    # steps. Few images and many epochs rather than all images once: data efficiency is what the paper is about. DeiT's
    # own augmentation is for 300 epochs; about a third of it is left for 24.
    "cpu": Profile(
        images=250, per_shard=250, views=_MILD,
        teacher={"model": "regnety_002", "extra": _STRIDE_8 | {"w0": 32, "wa": 24, "wm": 2.0, "depth": 8}},
        teacher_epochs=40, student={"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2},
        epochs=24, batch=50, lr=1e-3, warmup=3, points=(12,), workers=0,
    ),
    # 5 million views a row. DeiT's augmentation but for crops, whose smallest would be 9 of 32 pixels, and repeats.
    "gpu": Profile(
        images=0, per_shard=1000, views={"image_size": 32, "repeats": 1, "scale": [0.25, 1.0]},
        teacher={"model": "regnety_016", "extra": _STRIDE_8}, teacher_epochs=100,
        student={"patch_size": 4, "embed_dim": 192, "depth": 9, "num_heads": 3},
        epochs=100, batch=500, lr=1e-3, warmup=5, points=(25, 50, 75), workers="auto",
    ),
    "toy": Profile(
        images=0, per_shard=10, views=_MILD,
        teacher={"model": "regnety_002", "extra": _STRIDE_8 | {"w0": 24, "wa": 20, "wm": 2.0, "depth": 8}},
        teacher_epochs=2, student={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        epochs=2, batch=10, lr=1e-3, warmup=0, points=(1,), workers=0,
    ),
}  # fmt: skip


class Row(NamedTuple):
    """A way of training: tokens of the student, keys of `[train]`, and how many seeds."""

    tokens: int
    train: dict[str, Any]
    seeds: int


ROWS = {
    "none": Row(1, {"distillation": "none"}, 3),
    "token": Row(2, {"distillation": "hard"}, 3),
    "hard": Row(1, {"distillation": "hard"}, 3),
    "usual": Row(1, {"distillation": "soft", "tau": 3.0, "alpha": 0.1, "soft_reduction": "paper"}, 1),
    "two-class-tokens": Row(2, {"distillation": "label"}, 1),
}
"""Usual distillation has the paper's temperature and weight. "token" is three lines: each head and both."""


def main() -> None:
    """Run what is missing, write the evidence."""
    setting, arguments = parsed(__doc__)
    table_3(setting, Path(arguments.images), Path(arguments.out), arguments.jobs)


def parsed(about: str | None) -> tuple["Setting", argparse.Namespace]:
    """The command line of this script, and of those that go on in its workspace."""
    import torch

    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a tar with train/<class>/*.jpg and test/<class>/*.jpg")
    parser.add_argument("--profile", choices=PROFILES, help="default: gpu where there is one, else cpu")
    parser.add_argument("--work", default="runs/cifar10", help="workspace; what is there is resumed")
    parser.add_argument("--out", default=str(ROOT / "docs" / "evidence"), help="where the evidence is written")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side; 0 = in this process")
    arguments = parser.parse_args()
    profile = arguments.profile or ("gpu" if torch.cuda.is_available() else "cpu")
    return Setting(profile, Path(arguments.work).resolve()), arguments


class Setting(NamedTuple):
    """A profile in a workspace."""

    profile: str
    root: Path

    @property
    def sizes(self) -> Profile:
        """The profile's sizes."""
        return PROFILES[self.profile]

    def run_file(self, name: str, tokens: int = 1, **tables: dict[str, Any]) -> Any:
        """A run file of this setting.

        Args:
            name: of the run; "teacher" is the teacher's own training.
            tokens: of the student; 2 = with a distillation token.
            tables: keys that differ, table by table.
        """
        from schemas.run_file import parse_run

        sizes, images = self.sizes, str(self.root / "images.tar")
        deit = "deit_tiny_distilled_patch16_224" if tokens == 2 else "deit_tiny_patch16_224"
        student = sizes.teacher if name == "teacher" else {"model": deit, "extra": sizes.student}
        epochs = sizes.teacher_epochs if name == "teacher" else sizes.epochs
        values: dict[str, Any] = {
            "workspace": str(self.root),
            "source": {"train": images, "val": images},
            "shards": {"samples_per_shard": sizes.per_shard},
            "views": sizes.views,
            "teacher": sizes.teacher | {"checkpoint": "run:teacher"},
            "labels": {"views": sizes.epochs, "store": "full", "workers": sizes.workers},
            "student": student | {"drop_path": 0.0},
            "train": {
                "name": name, "distillation": "none", "epochs": epochs, "batch_size": sizes.batch, "lr": sizes.lr,
                "scale_lr": False, "warmup_epochs": sizes.warmup, "warmup_lr": sizes.lr / 5, "ema_decay": 0.0,
                "workers": sizes.workers, "validate_every": 0,
            },
            "evaluate": {"crop_pct": 1.0},
            "cluster": {"address": "inline"},
        }  # fmt: skip
        for table, keys in tables.items():
            values[table] = values[table] | keys
        return parse_run(values, name)


class Training(NamedTuple):
    """A training, and the epochs after which it is evaluated besides its last."""

    run: Any
    points: tuple[int, ...]


def table_3(setting: Setting, images: Path, out: Path, jobs: int) -> None:
    """Run what is missing of the table, and write the evidence after every step."""
    from cifar10_report import write_evidence

    from pipeline.commands.run import label, shard

    write_images(images, setting.root / "images.tar", setting.sizes.images)
    shard(setting.run_file("teacher"), say)
    teacher = Training(setting.run_file("teacher"), ())
    rows = list(trainings(setting))
    alone = [one for one in rows if one.run.train.distillation == "none"]
    list(side_by_side([teacher, alone[0]], jobs))
    timed(setting.root, "label-teacher", lambda: label(setting.run_file("token-0"), say))
    for _ in side_by_side(rows, jobs):
        write_evidence(setting, out)
    analyse(setting)
    write_evidence(setting, out)
    say(f"evidence -> {out}/cifar10.md")


def trainings(setting: Setting) -> Iterator[Training]:
    """All trainings of the table; a row's first seed comes before any second."""
    for seed in range(max(row.seeds for row in ROWS.values())):
        for name, row in ROWS.items():
            if seed < row.seeds:
                run = setting.run_file(f"{name}-{seed}", row.tokens, train=row.train | {"seed": seed})
                yield Training(run, () if seed else setting.sizes.points)


def side_by_side(wanted: list[Training], jobs: int) -> Iterator[str]:
    """Train and evaluate, each in a process of its own; the name of each as it ends."""
    if not jobs:
        for one in wanted:
            say(train_and_evaluate(one))
            yield one.run.train.name
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as processes:
        names = {processes.submit(train_and_evaluate, one): one.run.train.name for one in wanted}
        for done in as_completed(names):
            say(done.result())
            yield names[done]


def train_and_evaluate(wanted: Training) -> str:
    """Train up to each point and to the end, and evaluate there; what is done is skipped. The line that says so."""
    from pipeline.commands.run import evaluate, train

    run, root = wanted.run, Path(wanted.run.workspace)
    per_epoch = json.loads((root / "shards/train/manifest.json").read_text())["samples"] // run.train.batch_size
    measured = read(root, run.train.name)
    for epoch in (*wanted.points, run.train.epochs):
        if str(epoch) in measured.get("top1", {}):
            continue
        stop = run.model_copy(update={"train": run.train.model_copy(update={"max_steps": epoch * per_epoch})})
        timed(root, run.train.name, lambda stop=stop: train(stop, quiet))
        found = evaluate(run, quiet)
        heads = {head: found[head]["top1"] for head in ("class", "distillation", "fused") if found[head]}
        measured = read(root, run.train.name)
        measured |= {"top1": measured.get("top1", {}) | {str(epoch): heads}}
        write(root, run.train.name, measured)
    return f"{run.train.name}: " + ", ".join(f"{head} {value:.2%}" for head, value in heads_of(measured).items())


def heads_of(measured: dict[str, Any]) -> dict[str, float]:
    """Top-1 of each head at the last epoch that was measured."""
    points = measured.get("top1", {})
    return points[max(points, key=int)] if points else {}


def analyse(setting: Setting) -> None:
    """Who decides differently, and how alike the two tokens are."""
    from pipeline.commands.analyses import disagreement, tokens

    row = ROWS["token"]
    run = setting.run_file("token-0", 2, train=row.train, evaluate={"crop_pct": 1.0, "baseline": "none-0"})
    disagreement(run, quiet)
    tokens(run, quiet)
    tokens(setting.run_file("two-class-tokens-0", 2, train=ROWS["two-class-tokens"].train), quiet)


def timed(root: Path, name: str, do: Any) -> None:
    """Do a stage and add what it cost to what is known of it; a stage that finds its work done costs nothing."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = do()
    cost = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    if result.get("new_parts", 0) or result.get("steps", 0) > result.get("resumed_from_step", 0):
        measured = read(root, name)
        before = measured.get("cost", {})
        write(root, name, measured | {"cost": {key: before.get(key, 0.0) + value for key, value in cost.items()}})


def read(root: Path, name: str) -> dict[str, Any]:
    """What was measured of a run or stage so far."""
    path = root / "measured" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(root: Path, name: str, measured: dict[str, Any]) -> None:
    """Replace what was measured of a run or stage."""
    path = root / "measured" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    path.with_suffix(".tmp").replace(path)


def write_images(source: Path, target: Path, per_class: int) -> None:
    """Write the first images of each training class, by name, and all test images as a tar; 0 = all of both."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    half, kept = target.with_suffix(".tmp"), dict[str, int]()
    with tarfile.open(source) as given, tarfile.open(half, "w") as taken:
        for member in sorted((one for one in given if one.isfile()), key=lambda one: one.name):
            folder = member.name.rpartition("/")[0]
            kept[folder] = kept.get(folder, 0) + 1
            if not per_class or folder.startswith("test/") or kept[folder] <= per_class:
                taken.addfile(member, given.extractfile(member))
    half.replace(target)


def say(line: str) -> None:
    """A line on stderr, with the time."""
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


def quiet(line: str) -> None:
    """A stage's line that nobody needs."""


if __name__ == "__main__":
    # Threads that wait must not take cores from the trainings beside them; set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
