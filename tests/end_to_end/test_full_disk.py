"""A disk that really runs full in the middle of a stage: one line, and with room made the same command resumes.

The disks are memory, mounted in a room of their own that ends with its process; where mounting is not permitted, these
tests are skipped. That process runs all stages, since loading torch takes longer than they do, and says what it saw.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from schemas.toml_text import toml_text
from stages.storage.commit import broken_files, valid_receipts
from stages.storage.store import Store
from tests.support.stored import left, lines
from tests.support.world import ROOT, run_file

pytestmark = pytest.mark.slow

ROOM = ["unshare", "--map-root-user", "--mount"]
STAGES = {
    "shard": ("shards/train", ()),
    "label-teacher": ("labels/teacher", ("shards", "runs/teacher")),
    "train": ("runs/student", ("shards", "labels")),
}


@pytest.fixture(scope="module")
def told(whole, images, tmp_path_factory) -> dict[str, Any]:
    """What `main` saw, by stage and disk."""
    tried = [*ROOM, "mount", "-t", "tmpfs", "none", "/tmp"]
    if not shutil.which(ROOM[0]) or subprocess.run(tried, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    places = [whole.workspace, str(images), str(tmp_path_factory.mktemp("full"))]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*ROOM, sys.executable, __file__, *places], env=os.environ | path, capture_output=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("stage", STAGES)
def test_a_workspace_that_runs_full_is_one_line_and_nothing_half_written_counts(told, stage):
    full = told[f"{stage} workspace"]
    assert full["code"] == 1
    assert full["said"][-1].startswith(f"deit-pipeline: {full['workspace']}/{STAGES[stage][0]}/")
    assert "No space left on device" in full["said"][-1] and "Traceback" not in "".join(full["said"])
    assert full["parts"] and not full["whole"] and full["broken"] == full["halves"] == []


@pytest.mark.parametrize("stage", ["shard", "label-teacher"])
def test_a_temporary_folder_without_room_is_one_line_that_names_it(told, stage):
    full = told[f"{stage} TMPDIR"]
    assert full["code"] == 1
    assert full["said"][-1].startswith(f"deit-pipeline: {full['scratch']}")
    assert "No space left on device" in full["said"][-1] and "Traceback" not in "".join(full["said"])
    assert not full["whole"] and full["broken"] == full["halves"] == []


@pytest.mark.parametrize(
    "where", ["shard workspace", "label-teacher workspace", "train workspace", "shard TMPDIR", "label-teacher TMPDIR"]
)
def test_with_room_made_the_same_command_ends_with_the_bytes_of_an_undisturbed_run(told, where):
    assert told[where]["again"] == 0
    assert told[where]["other"] == []


def main(whole: Path, images: Path, folder: Path) -> dict[str, Any]:
    """Let each stage meet a full disk; what came of it."""
    os.chdir(folder)
    found = {f"{stage} workspace": meet(whole, images, folder / stage, stage) for stage in STAGES}
    scratch = folder / "scratch"
    return found | {
        f"{stage} TMPDIR": meet(whole, images, folder / f"{stage}-2", stage, scratch)
        for stage in ("shard", "label-teacher")
    }


def meet(whole: Path, images: Path, workspace: Path, stage: str, scratch: Path | None = None) -> dict[str, Any]:
    """Run a stage with room for half of what it stores, or for nothing in the temporary folder; then with room."""
    made, needs = STAGES[stage]
    disk = scratch or workspace
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(disk)], check=True)
    for need in needs:
        shutil.copytree(whole / need, workspace / need)
    tempfile.tempdir = str(scratch) if scratch else None
    Path("deit.toml").write_text(toml_text(run_file(workspace, images)))
    fill(disk, room=8 << 12 if scratch else pages(whole / made) // 2)
    code, said = type_in(stage)
    store = Store(str(workspace / made))
    receipts = valid_receipts(store, ("", *(f"checkpoints/{name}" for name in store.folders("checkpoints"))))
    state = {
        "parts": sorted(receipts),
        "whole": store.exists("manifest.json"),
        "broken": [path for one in receipts.values() for path, _ in broken_files(store, one.files)],
        "halves": [str(path) for path in (workspace / made).rglob(".*")],
    }
    (disk / "ballast").unlink()
    again, _ = type_in(stage)
    other = differing(workspace, whole, made)
    return {
        "code": code,
        "said": said,
        "workspace": str(workspace),
        "scratch": str(scratch),
        "again": again,
        "other": other,
    } | state


def type_in(*arguments: str) -> tuple[Any, list[str]]:
    """A command as typed: its exit code, and the lines of stderr."""
    import cli

    sys.argv[1:] = arguments
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as end:
            return end.code, said.getvalue().splitlines()


def pages(folder: Path) -> int:
    """Bytes that a folder's files take on a disk."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def fill(disk: Path, room: int) -> None:
    """Leave so many bytes of room."""
    about = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(about.f_bavail * about.f_frsize - room // 4096 * 4096))


def differing(workspace: Path, whole: Path, made: str) -> list[str]:
    """Names of what is stored otherwise than by the undisturbed run, but for a training's times and evaluation."""
    ours, theirs = left(workspace / made), left(whole / made)
    passing = {"run.toml", "evaluation.json", "metrics.jsonl"} if made.startswith("runs/") else set()
    names = {name for name in {*ours, *theirs} - passing if ours.get(name) != theirs.get(name)}
    return sorted(names | ({"metrics.jsonl"} if passing and lines(workspace) != lines(whole) else set()))


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
