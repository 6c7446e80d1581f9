"""Work is what is wanted less what receipts prove; a plan binds from its first part on."""

import pytest

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


def test_a_users_error_comes_back_as_a_value_and_a_bug_as_an_exception(tmp_path):
    def fail(spec, staging):
        raise PipelineError("the user's own mistake")

    error = Worker(Job(Store(str(tmp_path)), "me", lambda: fail)).run(SPECS[0])
    assert isinstance(error, PipelineError) and str(error) == "the user's own mistake"
    assert list(tmp_path.iterdir()) == []


class Loses:
    def __call__(self, spec, staging) -> Made:
        raise Unfinished("a data worker was lost")


def test_a_lost_data_process_is_raised_to_be_tried_again(tmp_path):
    with pytest.raises(Unfinished, match="lost"):
        Worker(Job(Store(str(tmp_path)), "me", Loses)).run(SPECS[0])
