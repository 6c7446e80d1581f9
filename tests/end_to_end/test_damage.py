"""Every file of a workspace, damaged in every way, before every stage that reads it: noticed, and led out of.

A cell is one file, one damage and one reader. The reader may refuse it with a line and the right exit code; then the
test does what the line says, to the letter, and reads again, until it succeeds. What it ends with are the bytes of an
undisturbed workspace. `verify` finds every damage of a file that it answers for, and its advice leads out as well.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.commands import run as stages
from pipeline.commands.export import export
from pipeline.commands.status import STAGES, status
from pipeline.commands.verify import verify
from schemas.config import RunFile
from schemas.errors import UserError
from tests.support.world import run_file, silent, stored, write_images

pytestmark = pytest.mark.slow

SMALL = {"patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 1}
SETTINGS: dict[str, Any] = {
    "shards": {"samples_per_shard": 4},
    "views": {"image_size": 32, "repeats": 2},
    "teacher": {"extra": SMALL},
    "labels": {"views": 2, "passes_per_part": 1},
    "student": {"extra": SMALL},
    "train": {
        "epochs": 2, "batch_size": 4, "warmup_epochs": 0, "max_steps": 2, "checkpoint_every": 1, "keep_checkpoints": 2,
        "log_every": 1,
    },
}  # fmt: skip
"""Two shards of four images, two parts of labels, two steps."""
TEACHER = {
    "student": {"model": "deit_tiny_patch16_224", "extra": SMALL}, "train": {"name": "teacher", "distillation": "none"},
}  # fmt: skip
OTHER = {"shards": {"seed": 1}, "train": {"seed": 1}}
"""Another workspace of the same images."""


class Workspace(NamedTuple):
    """A folder with images and a workspace in which every stage has run."""

    folder: Path
    images: Path
    changes: tuple[dict[str, Any], ...] = ()

    def run(self, *changes: dict[str, Any]) -> RunFile:
        return run_file(self.folder, self.images, SETTINGS, *self.changes, *changes)

    def make(self) -> "Workspace":
        stages.shard(self.run(), silent)
        stages.train(self.run(TEACHER), silent)
        stages.label(self.run(), silent)
        stages.train(self.run(), silent)
        stages.evaluate(self.run(), silent)
        return self


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Workspace:
    root = tmp_path_factory.mktemp("undisturbed")
    write_images(root / "images/train", {"blue": 4, "red": 4})
    write_images(root / "images/val", {"blue": 2, "red": 2}, seed=1)
    return Workspace(root / "workspace", root / "images").make()


@pytest.fixture(scope="module")
def another(undisturbed) -> Workspace:
    return undisturbed._replace(folder=undisturbed.folder.with_name("another"), changes=(OTHER,)).make()


def flip(file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    "flip": flip,
    "truncate": lambda file, other: file.write_bytes(file.read_bytes()[:-1]),
    "zero": lambda file, other: file.write_bytes(bytes(file.stat().st_size)),
    "swap": lambda file, other: shutil.copyfile(_sibling(file), file),
    "take": lambda file, other: shutil.copyfile(other, file),
    "delete": lambda file, other: file.unlink(),
}


def _sibling(file: Path) -> Path:
    """The file of the same kind that lies nearest: of another part, else of another stage."""
    near = sorted(one for one in file.parent.glob(f"*{file.suffix}") if one != file)
    far = sorted(one for one in file.parents[3].rglob(f"*{file.suffix}") if one.read_bytes() != file.read_bytes())
    return (near or far)[0]


READERS = {
    "label": ("labels/teacher", lambda run: stages.label(run, silent)),
    "label again": ("", lambda run: stages.label(run, silent)),
    "train": ("runs/student", lambda run: stages.train(run, silent)),
    "resume": ("runs/student/manifest.json", lambda run: stages.train(run, silent)),
    "train again": ("", lambda run: stages.train(run, silent)),
    "evaluate": ("predictions", lambda run: stages.evaluate(run, silent)),
    "evaluate again": ("", lambda run: stages.evaluate(run, silent)),
    "export": ("", lambda run: export(run, "safetensors", f"{run.workspace}/../export", silent)),
    "shard again": ("", lambda run: stages.shard(run, silent)),
    "shard the rest": ("shards/train/manifest.json", lambda run: stages.shard(run, silent)),
    "label the rest": ("labels/teacher/manifest.json", lambda run: stages.label(run, silent)),
}
"""What each reads everything of is deleted before, so that it has to read."""

FILES: list[tuple[str, list[str]]] = [
    ("shards/train/shard-000001.tar", ["label", "train"]),
    ("shards/train/shard-000001.parquet", ["label", "train"]),
    ("shards/train/receipts/shard-000001.json", ["shard the rest", "label", "train"]),
    ("shards/train/manifest.json", ["shard again", "label", "train", "evaluate", "export"]),
    ("shards/train/manifest/*.parquet", ["shard again", "label", "train", "export"]),
    ("shards/train/plan.json", ["shard again", "label", "train"]),
    ("shards/val/shard-000000.tar", ["evaluate"]),
    ("shards/val/manifest.json", ["shard again", "evaluate"]),
    ("labels/teacher/shard-000001.passes-00000-00001.parquet", ["train"]),
    ("labels/teacher/receipts/shard-000001.passes-00000-00001.json", ["label the rest"]),
    ("labels/teacher/manifest.json", ["label again", "train"]),
    ("labels/teacher/manifest/*.parquet", ["label again", "train"]),
    ("labels/teacher/plan.json", ["label again", "train"]),
    ("runs/teacher/model.safetensors", ["label"]),
    ("runs/teacher/manifest.json", ["label"]),
    ("runs/student/model.safetensors", ["train again", "evaluate", "export"]),
    ("runs/student/model_ema.safetensors", ["train again"]),
    ("runs/student/manifest.json", ["train again", "evaluate", "export"]),
    ("runs/student/run.toml", ["train again", "export"]),
    ("runs/student/plan.json", ["train again", "resume"]),
    ("runs/student/receipts/step-000000002.json", ["resume"]),
    ("runs/student/checkpoints/step-000000002/model.safetensors", ["resume"]),
    ("runs/student/checkpoints/step-000000002/ema.safetensors", ["resume"]),
    ("runs/student/checkpoints/step-000000002/state.safetensors", ["resume"]),
    ("runs/student/checkpoints/step-000000002/metrics.jsonl", ["resume"]),
    ("runs/student/metrics.jsonl", ["train again"]),
    ("predictions/*/block-000000.parquet", ["evaluate again"]),
    ("predictions/*/receipts/block-000000.json", ["evaluate again"]),
    ("predictions/*/manifest.json", ["evaluate again"]),
    ("predictions/*/plan.json", ["evaluate again"]),
]
"""Files by what they are, one of each kind, and who reads them."""
UNPROVEN = {"runs/student/metrics.jsonl"}
"""What no reader takes for anything: lines for people, put anew from the newest checkpoint."""


@pytest.fixture
def copy(undisturbed, tmp_path) -> Iterator[Workspace]:
    shutil.copytree(undisturbed.folder, tmp_path / "workspace")
    yield undisturbed._replace(folder=tmp_path / "workspace")


def found(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def follow(line: str, workspace: Workspace) -> None:
    """Do what a line says, and nothing else."""
    did = False
    for path in re.findall(rf"delete ({workspace.folder}\S+?)(?:,| and |$)", line):
        Path(path).unlink()
        did = True
    if not did and "; delete it" in line:
        Path(re.match(rf"({workspace.folder}\S+):", line)[1]).unlink()
        did = True
    verbs = re.findall(r"`deit-pipeline ([a-z-]+)`", line)
    if "rerun its stage" in line:
        folder = re.search(rf"{workspace.folder}/([a-z]+)/", line)[1]
        verbs.append(next(verb for verb, of_verb in STAGES.items() if of_verb == folder))
    for verb in verbs:
        rerun(verb, workspace, line)
    assert did or verbs, f"no advice that can be followed: {line}"


def advice(problem: dict[str, str]) -> str:
    """As `verify` prints it."""
    return f"{problem['path']}: {problem['what']}; {problem['fix']}" if problem["fix"] else problem["what"]


def rerun(verb: str, workspace: Workspace, line: str) -> None:
    if verb == "verify":
        for problem in verify(str(workspace.folder))["problems"]:
            follow(advice(problem), workspace)
        return
    run = workspace.run(TEACHER) if "runs/teacher" in line else workspace.run()
    with contextlib.suppress(UserError):  # a further fault has a line of its own, which the reader meets
        {"shard": stages.shard, "label-teacher": stages.label, "train": stages.train, "evaluate": stages.evaluate}[
            verb
        ](run, silent)


def until_done(do: Callable[[], Any], workspace: Workspace) -> list[UserError]:
    """Read, and follow the advice, until it succeeds; what was refused on the way."""
    refused: list[UserError] = []
    while True:
        try:
            do()
            return refused
        except UserError as error:
            refused.append(error)
            assert error.exit_code in (1, 4) and "\n" not in str(error)
            assert len(refused) < 4, f"the advice leads nowhere: {[str(one) for one in refused]}"
            follow(str(error), workspace)


def counted(folder: Path) -> dict[str, bytes]:
    """What has to be the same in the end: all but the clock's lines and paths."""
    skipped = ("metrics.jsonl", "run.toml", "listed.json")
    found = stored(folder).items()
    return {name: data for name, data in found if not name.endswith(skipped) and not name.startswith("hours/")}


def table(cells: list[tuple[str, ...]]) -> list[Any]:
    """The cells as parameters: one in five is tried always, each of their files and damages among them."""
    marks: list[Any] = [() if number % 5 == 0 else pytest.mark.thorough for number in range(len(cells))]
    return [pytest.param(*cell, id=" | ".join(cell), marks=mark) for cell, mark in zip(cells, marks, strict=True)]


CELLS = table([(file, damage, reader) for file, readers in FILES for damage in DAMAGES for reader in readers])


@pytest.mark.parametrize(("file", "damage", "reader"), CELLS)
def test_a_damaged_file_is_noticed_by_its_reader_and_led_out_of(undisturbed, another, copy, file, damage, reader):
    target = found(copy.folder, file)
    DAMAGES[damage](target, found(another.folder, file))
    gone, read = READERS[reader]
    shutil.rmtree(copy.folder / gone, ignore_errors=True) if gone else None
    if gone.endswith(".json"):
        (copy.folder / gone).unlink()
    until_done(lambda: read(copy.run()), copy)
    truth = counted(undisturbed.folder)
    made = {name: data for name, data in counted(copy.folder).items() if (gone or file.partition("/")[0]) in name}
    assert made and {name for name in made if made[name] != truth.get(name)} == set()


PROVEN = table([(file, damage) for file, _ in FILES if file not in UNPROVEN for damage in DAMAGES])


@pytest.mark.parametrize(("file", "damage"), PROVEN)
def test_verify_finds_a_damaged_file_and_its_advice_leads_out(undisturbed, another, copy, file, damage):
    target = found(copy.folder, file)
    before = target.read_bytes()
    DAMAGES[damage](target, found(another.folder, file))
    if target.exists() and target.read_bytes() == before:
        pytest.skip("the other workspace has the same file")
    assert {one["state"] for one in status(str(copy.folder))["stages"]} <= {"done", "begun", "damaged"}
    for _ in range(4):
        if (result := verify(str(copy.folder)))["ok"]:
            break
        for problem in result["problems"]:
            follow(advice(problem), copy)
    assert result["ok"]
    made, truth = counted(copy.folder), counted(undisturbed.folder)
    lost = {name for name in truth if made.get(name) != truth[name]}
    assert {name for name in lost if "step-" not in name} == set()  # checkpoints of a finished run are not made again
