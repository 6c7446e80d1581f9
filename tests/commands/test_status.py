"""status shows how far each stage is; verify finds whatever is not as it was written."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.status import about_stage, status
from pipeline.commands.verify import verify
from pipeline.execution.failures import Failures, PartFailure
from schemas.manifests import ShardManifest
from schemas.parts import Parts
from schemas.receipts import canonical_json
from stages.storage.manifest import open_manifest, put_manifest
from stages.storage.store import Store
from tests.support.stored import edit_state
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
    store = Store(run.workspace).child("labels/teacher")
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
    store = Store(run.workspace).child("runs/student")
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
        edit_state(Path(store.uri, folder, "plan.json"), lambda fields, wanted=wanted: fields.update(wanted=wanted))
    shown = {(one["stage"], one["name"]): one for one in status(store.uri)["stages"]}
    for stage, missing in ((("train", "student"), 8), (("label-teacher", "teacher"), 3)):
        assert (shown[stage]["state"], shown[stage]["missing"]) == ("begun", missing)


def test_status_of_nothing_is_nothing(tmp_path):
    assert status(str(tmp_path / "nowhere")) == {"workspace": str(tmp_path / "nowhere"), "stages": []}


def told(found: dict[str, Any]) -> list[dict[str, str]]:
    """The problems without their fixes, of which each says what to run."""
    assert all("rerun `deit-pipeline" in one["fix"] for one in found["problems"])
    return [{"path": one["path"], "what": one["what"]} for one in found["problems"]]


def proven(workspace: str) -> list[str]:
    """All files that verify answers for."""
    endings = (".tar", ".parquet", ".safetensors")
    names = stored(Path(workspace))
    return [name for name in names if name.endswith(endings) or ("checkpoints/" in name and name.endswith(".jsonl"))]


def test_one_flipped_bit_in_any_file_is_found_and_named(copied):
    workspace = copied().workspace
    files = proven(workspace)
    lists_of_parts = 4
    assert len(files) == 4 * 2 + 6 + (2 * 4 + 2) + (1 * 4 + 2) + 1 + lists_of_parts
    for number, name in enumerate(files):
        file = Path(workspace, name)
        at = number * 977 % file.stat().st_size
        flip_byte(file, at)
        found = verify(workspace)
        assert (found["ok"], found["checked"]) == (False, len(files))
        assert told(found) == [{"path": str(file), "what": "has other bytes than its receipt says"}]
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
    assert told(verify(workspace)) == [{"path": f"{workspace}/{name}", "what": "is missing"}]


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
    store = Store(str(file.parent))
    found = open_manifest(store, ShardManifest)
    first, *rest = found.parts
    longer = replace(first, files=(replace(first.files[0], bytes=1), *first.files[1:]))
    fields = {key: getattr(found.manifest, key) for key in found.manifest.model_fields_set - {"content", "parts"}}
    put_manifest(store, ShardManifest, Parts.of([longer, *rest]), **fields)
    assert told(verify(str(file.parents[2]))) == [{"path": str(file), "what": "shard-000000 differs from its receipt"}]


def test_a_receipt_of_another_part_and_one_of_something_else_are_found(copied):
    folder = Path(copied().workspace, "shards/train/receipts")
    (folder / "shard-000002.json").write_bytes((folder / "shard-000001.json").read_bytes())
    (problem,) = verify(str(folder.parents[2]))["problems"]
    assert "is the receipt of shard-000001; delete it and rerun its stage" in problem["what"]
    receipt = json.loads((folder / "shard-000001.json").read_text()) | {"part": "shard-000002", "made_by": "0" * 64}
    (folder / "shard-000002.json").write_bytes(canonical_json(receipt))
    problems = verify(str(folder.parents[2]))["problems"]
    assert [one["what"] for one in problems] == ["is of something else than the plan (made_by)"]


def test_what_an_editor_left_beside_receipts_stops_neither_verify_nor_status(copied):
    workspace = copied().workspace
    Path(workspace, "shards/train/receipts/shard-000001.json~").write_bytes(b"an editor's")
    assert verify(workspace)["ok"]
    assert {one["state"] for one in status(workspace)["stages"]} == {"done"}


@pytest.mark.parametrize("file", ["manifest.json", "plan.json"])
@pytest.mark.parametrize("data", [b"{}", b"[]", b"null", b'{"parts": null}', b'{"torn'])
def test_one_damaged_file_hides_no_other_stage_from_status(copied, file, data):
    workspace = copied().workspace
    path = Path(workspace, "labels/teacher", file)
    path.write_bytes(data)
    shown = {(one["stage"], one["name"]): one for one in status(workspace)["stages"]}
    damaged = shown.pop(("label-teacher", "teacher"))
    assert damaged["state"] == "damaged" and about_stage(damaged).startswith(f"{path}: is damaged (")
    assert {one["state"] for one in shown.values()} == {"done"} and len(shown) == 5


def test_what_killed_writers_left_is_no_problem(copied):
    workspace = copied().workspace
    Path(workspace, "shards/train/.shard-000000.tar.1.tmp").write_bytes(b"half")
    assert verify(workspace)["ok"]
