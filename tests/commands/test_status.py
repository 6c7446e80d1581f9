"""status shows how far each stage is; verify finds whatever is not as it was written."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.status import about_stage, status
from pipeline.commands.verify import verify
from pipeline.execution.failures import Failures, PartFailure
from stages.storage.commit import put_json
from stages.storage.store import Store
from tests.support.world import flip_byte, stored


def test_status_shows_every_stage_and_how_far_it_is(copied):
    run = copied()
    shown = {(one["stage"], one["name"]): one for one in status(run.workspace)["stages"]}
    assert sum(shown["shard", "train"].pop("device_hours").values()) > 0
    assert shown["shard", "train"] == {"stage": "shard", "name": "train", "state": "done", "parts": 3}
    assert shown["label-teacher", "teacher"]["state"] == "done"
    assert (shown["train", "student"]["state"], shown["train", "student"]["steps"]) == ("done", 12)
    for folder in ("labels/teacher", "runs/student"):
        Path(run.workspace, folder, "manifest.json").unlink()
    shown = {(one["stage"], one["name"]): one for one in status(run.workspace)["stages"]}
    assert (shown["label-teacher", "teacher"]["state"], shown["label-teacher", "teacher"]["parts"]) == ("begun", 6)
    assert (shown["train", "student"]["state"], shown["train", "student"]["steps"]) == ("begun", 12)


def put_lease(store: Store, **said: Any) -> None:
    """Of a command elsewhere that has made two parts in four seconds."""
    now = time.time()
    made = {"made_by": "me", "host": "elsewhere", "pid": 7, "started": now - 4, "refreshed": now, "new": 2}
    store.put("leases/one.json", json.dumps(made | said).encode())


def test_status_tells_from_the_storage_alone_what_is_done_running_failed_and_missing_and_how_fast(copied):
    run = copied()
    store = Store(run.workspace).at("labels/teacher")
    store.delete("manifest.json")
    parts = sorted(name.removesuffix(".json") for name in store.files("receipts"))
    for part in parts[2:]:
        store.delete(f"receipts/{part}.json")
    Failures(store).put(parts[2], PartFailure("ValueError: why", ""), 3)
    put_lease(store, running=[parts[3]], training=False, at=2)
    (shown,) = [one for one in status(run.workspace)["stages"] if one["stage"] == "label-teacher"]
    assert "; took " in about_stage(shown) and sum(shown.pop("device_hours").values()) > 0
    assert shown == {
        "stage": "label-teacher", "name": "teacher", "state": "running", "parts": 2, "wanted": 6, "running": [parts[3]],
        "failed": [parts[2]], "missing": 2, "per_second": 0.5, "seconds_left": 6.0,
    }  # fmt: skip
    said = "2 of 6 parts done, 1 running, 1 failed, 2 missing; 30 parts/min, 6 s left"
    assert about_stage(shown) == said


def test_status_of_a_training_under_way_counts_steps(copied):
    run = copied()
    store = Store(run.workspace).at("runs/student")
    for name in ("manifest.json", "receipts/step-000000012.json"):
        store.delete(name)
    put_lease(store, running=[], training=True, at=11)
    (shown,) = [one for one in status(run.workspace)["stages"] if one["name"] == "student"]
    assert (shown["state"], shown["steps"], shown["wanted"], shown["missing"]) == ("running", 11, 12, 1)
    shown.pop("device_hours")
    assert about_stage(shown) == "11 of 12 steps done, 1 missing; 30 steps/min, 2 s left"


def test_status_of_work_that_has_grown_is_not_done(copied):
    store = Store(copied().workspace)
    for folder, wanted in (("runs/student", 20), ("labels/teacher", 9)):
        put_json(store.at(folder), "plan.json", json.loads(store.read(f"{folder}/plan.json")) | {"wanted": wanted})
    shown = {(one["stage"], one["name"]): one for one in status(store.uri)["stages"]}
    for stage, missing in ((("train", "student"), 8), (("label-teacher", "teacher"), 3)):
        assert (shown[stage]["state"], shown[stage]["missing"]) == ("begun", missing)


def test_status_of_nothing_is_nothing(tmp_path):
    assert status(str(tmp_path / "nowhere")) == {"workspace": str(tmp_path / "nowhere"), "stages": []}


def proven(workspace: str) -> list[str]:
    """All files that verify answers for."""
    endings = (".tar", ".parquet", ".safetensors")
    names = stored(Path(workspace))
    return [name for name in names if name.endswith(endings) or ("checkpoints/" in name and name.endswith(".jsonl"))]


def test_one_flipped_bit_in_any_file_is_found_and_named(copied):
    workspace = copied().workspace
    files = proven(workspace)
    assert len(files) == 4 * 2 + 6 + (2 * 4 + 2) + (1 * 4 + 2) + 1
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
