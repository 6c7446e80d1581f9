"""Work is what is wanted less what receipts prove; a plan binds from its first part on."""

from pipeline.failures import Fault
from pipeline.work import Job, Worker, begin, finish, left_to_do
from schemas.errors import PipelineError, Unfinished
from schemas.receipts import Made, fingerprint
from stages.shard import ShardSpec
from stages.store import Store, commit, read_manifest

SPECS = [ShardSpec(number, ()) for number in range(3)]


def made(spec, staging) -> Made:
    return Made(files={f"{spec.name}.txt": b"x"}, rows=1, facts={})


def test_what_is_left_keeps_its_order(tmp_path):
    store = Store(str(tmp_path))
    done = commit(store, SPECS[1].name, made(SPECS[1], tmp_path), "me")
    assert left_to_do(SPECS, {done.part: done}) == [SPECS[0], SPECS[2]]
    assert left_to_do(SPECS, {}) == SPECS


def test_nothing_is_begun_in_the_folder_that_ray_lends_a_job(tmp_path, refused):
    lent = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_1"
    line = refused(begin, Store(str(lent / "runs/deit/shards/train")), {"seed": 1}, {}, "mend")
    assert "lies in the copy of --working-dir that Ray deletes after the job" in line and not lent.exists()


def test_a_plan_may_change_until_there_is_a_part_and_not_after(tmp_path, refused):
    store = Store(str(tmp_path))
    begin(store, {"seed": 1}, {}, "mend")
    assert begin(store, {"seed": 2}, {}, "mend") == fingerprint({"seed": 2})
    commit(store, SPECS[0].name, made(SPECS[0], tmp_path), "me")
    assert begin(store, {"seed": 2}, {}, "mend") == fingerprint({"seed": 2})
    line = refused(begin, store, {"seed": 3}, {}, "do this", code=4)
    assert line == f"{tmp_path} was made differently (seed: 2 -> 3); do this"


def test_other_versions_of_libraries_do_not_change_what_is_made(tmp_path):
    store = Store(str(tmp_path))
    begin(store, {"seed": 1}, {"torch": "1"}, "mend")
    commit(store, SPECS[0].name, made(SPECS[0], tmp_path), "me")
    begin(store, {"seed": 1}, {"torch": "2"}, "mend")
    assert read_manifest(store, "plan.json")["versions"] == {"torch": "1"}


def test_a_manifest_is_not_written_again_while_it_says_the_same(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    receipt = commit(store, SPECS[0].name, made(SPECS[0], tmp_path), "me")
    first = finish(store, {"seed": 1}, [receipt], stage="x")
    monkeypatch.setattr(Store, "put", lambda *_: (_ for _ in ()).throw(AssertionError("written again")))
    assert finish(store, {"seed": 1}, [receipt], stage="x") == first


def test_a_users_error_comes_back_as_a_value(tmp_path):
    def fail(spec, staging):
        raise PipelineError("the user's own mistake")

    error = Worker(Job(Store(str(tmp_path)), "me", lambda: fail)).run(SPECS[0])
    assert isinstance(error, PipelineError) and str(error) == "the user's own mistake"
    assert list(tmp_path.iterdir()) == []


def loses():
    def make(spec, staging) -> Made:
        raise Unfinished("a data worker was lost")

    return make


def test_a_lost_data_process_comes_back_as_one_to_be_tried_again(tmp_path):
    outcome = Worker(Job(Store(str(tmp_path)), "me", loses)).run(SPECS[0])
    assert isinstance(outcome, Unfinished)


def test_a_bug_comes_back_with_its_traceback_and_a_full_disk_as_the_users_error(tmp_path):
    def maker(error):
        def make(spec, staging) -> Made:
            raise error

        return lambda: make

    fault = Worker(Job(Store(str(tmp_path)), "me", maker(ValueError("why")))).run(SPECS[0])
    assert isinstance(fault, Fault) and fault.cause == "ValueError: why" and "in make" in fault.traceback
    full = Worker(Job(Store(str(tmp_path)), "me", maker(OSError(28, "No space left on device")))).run(SPECS[0])
    assert isinstance(full, PipelineError) and "(No space left on device); make some, or set TMPDIR" in str(full)
