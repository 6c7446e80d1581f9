"""status shows how far each stage is; verify finds whatever is not as it was written."""

from pathlib import Path

import pytest
from world import flip_byte, stored

from pipeline.overview import status, verify


def test_status_shows_every_stage_and_how_far_it_is(copied):
    run = copied()
    shown = {(one["stage"], one["name"]): one for one in status(run.workspace)["stages"]}
    assert shown["shard", "train"] == {"stage": "shard", "name": "train", "state": "done", "parts": 3}
    assert shown["label-teacher", "teacher"]["state"] == "done"
    assert (shown["train", "student"]["state"], shown["train", "student"]["steps"]) == ("done", 12)
    for folder in ("labels/teacher", "runs/student"):
        Path(run.workspace, folder, "manifest.json").unlink()
    shown = {(one["stage"], one["name"]): one for one in status(run.workspace)["stages"]}
    assert (shown["label-teacher", "teacher"]["state"], shown["label-teacher", "teacher"]["parts"]) == ("begun", 6)
    assert (shown["train", "student"]["state"], shown["train", "student"]["steps"]) == ("begun", 12)


def test_status_of_nothing_is_nothing(tmp_path):
    assert status(str(tmp_path / "nowhere")) == {"workspace": str(tmp_path / "nowhere"), "stages": []}


def proven(workspace: str) -> list[str]:
    """All files that verify answers for."""
    return [name for name in stored(Path(workspace)) if name.endswith((".tar", ".parquet", ".safetensors"))]


def test_one_flipped_bit_in_any_file_is_found_and_named(copied):
    workspace = copied().workspace
    files = proven(workspace)
    assert len(files) == 4 * 2 + 6 + (2 * 3 + 2) + (1 * 3 + 2)
    for number, name in enumerate(files):
        file = Path(workspace, name)
        at = number * 977 % file.stat().st_size
        flip_byte(file, at)
        found = verify(workspace)
        assert (found["ok"], found["checked"]) == (False, len(files))
        assert found["problems"] == [{"path": str(file), "what": "has other bytes than its receipt says"}]
        flip_byte(file, at)
    assert verify(workspace) == {"ok": True, "checked": len(files), "problems": []}


@pytest.mark.parametrize(
    "name",
    [
        "shards/train/shard-000002.tar", "shards/val/shard-000000.parquet", "runs/student/model.safetensors",
        "labels/teacher/shard-000001.passes-00000-00002.parquet", "shards/train/receipts/shard-000001.json",
        "labels/teacher/receipts/shard-000001.passes-00000-00002.json",
    ],
)  # fmt: skip
def test_a_deleted_file_is_found_and_named(copied, name):
    workspace = copied().workspace
    Path(workspace, name).unlink()
    assert verify(workspace)["problems"] == [{"path": f"{workspace}/{name}", "what": "is missing"}]


@pytest.mark.parametrize(
    "name",
    ["labels/teacher/receipts/shard-000001.passes-00000-00002.json", "runs/student/receipts/step-000000012.json"],
)
def test_a_torn_receipt_is_found_and_named(copied, name):
    file = Path(copied().workspace, name)
    file.write_bytes(file.read_bytes()[:-30])
    (problem,) = verify(str(file.parents[3]))["problems"]
    assert problem["path"] == str(file)
    assert "not a receipt" in problem["what"]


def test_a_manifest_that_disagrees_with_a_receipt_is_found(copied):
    file = Path(copied().workspace, "shards/train/manifest.json")
    file.write_text(file.read_text().replace('"bytes":', '"bytes":1', 1))
    (problem,) = verify(str(file.parents[2]))["problems"]
    assert problem == {"path": str(file), "what": "shard-000000 differs from its receipt"}


def test_what_killed_writers_left_is_no_problem(copied):
    workspace = copied().workspace
    Path(workspace, "shards/train/.shard-000000.tar.1.tmp").write_bytes(b"half")
    assert verify(workspace)["ok"]
