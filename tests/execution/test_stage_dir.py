"""Work is what is wanted less what receipts prove; a plan binds from its first part on."""

import os
import tempfile

from pipeline.execution.failures import PartFailure
from pipeline.execution.stage_dir import completed_manifest, open_stage, write_manifest
from pipeline.execution.worker import STAGING, Job, Worker, left_to_do
from schemas.errors import IncompleteError, UserError
from schemas.manifests import LabelManifest, PredictionsManifest
from schemas.plan import Plan
from schemas.receipts import PartOutput, canonical_json, fingerprint
from stages.shard.plan import ShardSpec
from stages.storage.commit import commit, read_plan
from stages.storage.locks import scratch_folder
from stages.storage.store import Store

LABELS = {
    "stage": "label-teacher", "views": 3, "agreement": 1.0, "mixed_agreement": {}, "margins": {}, "margin_counts": (),
    "near_ties": 0.0,
}  # fmt: skip
SPECS = [ShardSpec(number, ()) for number in range(3)]


def made(spec, staging) -> PartOutput:
    return PartOutput(files={f"{spec.name}.txt": b"x"}, rows=1, facts={})


def test_what_is_left_keeps_its_order(tmp_path):
    store = Store(str(tmp_path))
    done = commit(store, SPECS[1].name, made(SPECS[1], tmp_path), "me")
    assert left_to_do(SPECS, {done.part: done}) == [SPECS[0], SPECS[2]]
    assert left_to_do(SPECS, {}) == SPECS


def test_nothing_is_begun_in_the_folder_that_ray_lends_a_job(tmp_path, refused):
    lent = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_1"
    line = refused(open_stage, Store(str(lent / "runs/deit/shards/train")), {"seed": 1}, {}, "fix it")
    assert "lies in the copy of --working-dir that Ray deletes after the job" in line and not lent.exists()


def test_a_plan_may_change_until_there_is_a_part_and_not_after(tmp_path, refused):
    store = Store(str(tmp_path))
    for seed in (1, 2):
        with open_stage(store, {"seed": seed}, {}, "fix it").hold_lease(3):
            assert read_plan(store) == Plan(made_from={"seed": seed}, versions={}, wanted=3)
    commit(store, SPECS[0].name, made(SPECS[0], tmp_path), fingerprint({"seed": 2}))
    assert open_stage(store, {"seed": 2}, {}, "fix it").made_by == fingerprint({"seed": 2})
    line = refused(open_stage, store, {"seed": 3}, {}, "do this", code=4)
    assert line == f"{tmp_path} was made differently (seed: 2 -> 3); do this"


def test_the_lease_of_a_killed_command_goes_also_where_nothing_is_left_to_do(tmp_path):
    store = Store(str(tmp_path))
    lease = {
        "made_by": fingerprint({"seed": 1}),
        "host": "elsewhere",
        "pid": 7,
        "started": 0,
        "refreshed": 0,
        "new": 0,
        "running": [],
    }
    store.put("leases/killed.json", canonical_json(lease | {"training": False, "at": 0}))
    os.utime(store.local_path("leases/killed.json"), (0, 0))
    open_stage(store, {"seed": 1}, {}, "fix it")
    assert store.files("leases") == {}


def test_other_versions_of_libraries_do_not_change_what_is_made(tmp_path):
    store = Store(str(tmp_path))
    for version in "12":
        with open_stage(store, {"seed": 1}, {"torch": version}, "fix it").hold_lease(1):
            commit(store, SPECS[0].name, made(SPECS[0], tmp_path), fingerprint({"seed": 1}))
    assert read_plan(store).versions == {"torch": "1"}


def test_of_two_commands_from_different_run_files_that_begin_at_one_moment_one_withdraws(tmp_path, refused):
    store = Store(str(tmp_path))
    first, second = (open_stage(store, {"seed": seed}, {}, "fix it") for seed in (1, 2))  # neither has put its plan
    with first.hold_lease(3):
        line = refused(second.hold_lease(3).__enter__, code=4)
        assert "from something else than this run file says" in line
        assert read_plan(store).made_from == {"seed": 1}
        commit(store, SPECS[0].name, made(SPECS[0], tmp_path), first.made_by)
    line = refused(second.hold_lease(3).__enter__, code=4)
    assert line == f"{tmp_path} was made differently (seed: 1 -> 2); fix it"
    assert store.files("leases") == {}


def test_a_manifest_is_not_written_again_while_it_says_the_same(tmp_path, monkeypatch):
    begun = open_stage(Store(str(tmp_path)), {"seed": 1}, {}, "fix it")
    receipt = commit(begun.store, SPECS[0].name, made(SPECS[0], tmp_path), "me")
    first = write_manifest(begun, PredictionsManifest, [receipt], stage="evaluate")
    monkeypatch.setattr(Store, "put", lambda *_: (_ for _ in ()).throw(AssertionError("written again")))
    assert write_manifest(begun, PredictionsManifest, [receipt], stage="evaluate") == first


def test_a_stage_is_whole_while_its_manifest_and_all_that_it_lists_are_there(tmp_path):
    store = Store(str(tmp_path))
    begun = open_stage(store, {"seed": 1}, {}, "fix it")
    assert completed_manifest(begun, LabelManifest) is None
    receipts = [commit(store, spec.name, made(spec, tmp_path), begun.made_by) for spec in SPECS]
    assert completed_manifest(begun, LabelManifest) is None
    manifest = write_manifest(begun, LabelManifest, receipts, **LABELS)
    assert completed_manifest(begun, LabelManifest) == completed_manifest(begun, LabelManifest, views=3) == manifest
    assert completed_manifest(begun, LabelManifest, views=4) is None
    assert completed_manifest(begun, LabelManifest, beside=["index"]) is None
    (tmp_path / "index").touch()
    assert completed_manifest(begun, LabelManifest, beside=["index"]) == manifest
    for lost in ("shard-000001.txt", "receipts/shard-000001.json"):
        data = store.read(lost)
        store.delete(lost)
        assert completed_manifest(begun, LabelManifest) is None
        store.put(lost, data)
    store.put("shard-000002.txt", b"longer")
    assert completed_manifest(begun, LabelManifest) is None


def test_a_folder_in_which_a_killed_process_made_a_part_is_swept_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{STAGING}killed").mkdir()
    (tmp_path / "deit-pipeline-mine").mkdir()
    with scratch_folder(STAGING) as other, scratch_folder(STAGING) as mine:
        assert other.is_dir() and mine.is_dir() and not (tmp_path / f"{STAGING}killed").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["deit-pipeline-mine"]


def test_a_users_error_comes_back_as_a_value(tmp_path):
    def fail(spec, staging):
        raise UserError("the user's own mistake")

    error = Worker(Job(open_stage(Store(str(tmp_path)), {}, {}, ""), lambda: fail), "").run(SPECS[0])
    assert isinstance(error, UserError) and str(error) == "the user's own mistake"
    assert list(tmp_path.iterdir()) == []


def loses():
    def make(spec, staging) -> PartOutput:
        raise IncompleteError("a data worker was lost")

    return make


def test_a_lost_data_process_comes_back_as_one_to_be_tried_again(tmp_path):
    outcome = Worker(Job(open_stage(Store(str(tmp_path)), {}, {}, ""), loses), "").run(SPECS[0])
    assert isinstance(outcome, IncompleteError)


def test_a_bug_comes_back_with_its_traceback_and_a_full_disk_as_the_users_error(tmp_path):
    def maker(error):
        def make(spec, staging) -> PartOutput:
            raise error

        return lambda: make

    stage_dir = open_stage(Store(str(tmp_path)), {}, {}, "")
    fault = Worker(Job(stage_dir, maker(ValueError("why"))), "").run(SPECS[0])
    assert isinstance(fault, PartFailure) and fault.cause == "ValueError: why" and "in make" in fault.traceback
    full = Worker(
        Job(open_stage(Store(str(tmp_path)), {}, {}, ""), maker(OSError(28, "No space left on device"))), ""
    ).run(SPECS[0])
    assert isinstance(full, UserError) and "(No space left on device); make some, or set TMPDIR" in str(full)


def test_where_the_plan_is_lost_the_parts_still_bind(tmp_path, refused):
    store = Store(str(tmp_path))
    begun = open_stage(store, {"seed": 1}, {}, "fix it")
    with begun.hold_lease(1):
        receipt = commit(store, SPECS[0].name, made(SPECS[0], tmp_path), begun.made_by)
    store.delete("plan.json")
    assert "plan.json is missing" in refused(open_stage, store, {"seed": 2}, {}, "do this", code=4)
    write_manifest(open_stage(store, {"seed": 1}, {}, "fix it"), PredictionsManifest, [receipt], stage="evaluate")
    store.delete("plan.json")
    line = refused(open_stage, store, {"seed": 2}, {}, "do this", code=4)
    assert line == f"{tmp_path} was made differently (seed: 1 -> 2); do this"
    open_stage(store, {"seed": 1}, {}, "fix it")
    assert read_plan(store) == Plan(made_from={"seed": 1}, versions={}, wanted=1)


def test_a_plan_of_something_else_than_the_parts_is_named_and_is_right_again_when_deleted_as_advised(tmp_path, refused):
    store = Store(str(tmp_path))
    begun = open_stage(store, {"seed": 1}, {}, "fix it")
    with begun.hold_lease(1):
        commit(store, SPECS[0].name, made(SPECS[0], tmp_path), begun.made_by)
    store.put("plan.json", Plan(made_from={"seed": 2}, versions={}).to_json())
    line = refused(open_stage, store, {"seed": 1}, {}, "fix it", code=4)
    assert line.startswith(f"{tmp_path}/plan.json: is of something else than this folder's parts; delete it")
    store.delete("plan.json")
    with open_stage(store, {"seed": 1}, {}, "fix it").hold_lease(1):
        assert read_plan(store).made_from == {"seed": 1}
