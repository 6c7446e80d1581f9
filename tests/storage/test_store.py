"""Storage: a file is there whole or not at all, and only a receipt with its files says that a part is done."""

import errno
import hashlib
import os
import pickle
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest

from pipeline.commands.reports import put_report
from schemas.plan import Plan
from schemas.receipts import PartOutput, fingerprint
from stages.storage import disk
from stages.storage import store as store_module
from stages.storage.commit import broken_files, commit, put_json, put_state, read_checked, read_receipt, valid_receipts
from stages.storage.disk import TEMPORARY_SUFFIX
from stages.storage.locks import locked
from stages.storage.store import Store
from tests.support.world import flip_byte, stored


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def receipt(store):
    return commit(
        store, "part-1", PartOutput(files={"b.txt": b"second", "a.txt": b"first"}, rows=3, facts={"x": 1}), "me"
    )


def test_a_reader_never_sees_a_partial_file(store):
    versions = [bytes([number]) * 200_000 for number in range(1, 5)]
    store.put("file", versions[0])
    over, seen = threading.Event(), set()

    def read() -> None:
        while not over.is_set():
            seen.add(store.read("file"))

    reader = threading.Thread(target=read)
    reader.start()
    for nth in range(60):
        store.put("file", versions[nth % 4])
    over.set()
    reader.join()
    assert seen <= set(versions) and len(seen) > 1


def test_a_killed_writers_half_is_swept_away_and_a_living_ones_is_not(store):
    store.put("receipts/whole", b"x")
    dead, living = (Path(store.uri, "receipts", f".part.{name}{TEMPORARY_SUFFIX}") for name in ("dead", "living"))
    dead.write_bytes(b"half")
    with locked(living) as file:
        file.write(b"half")
        store.remove_stale_temp_files()
        assert living.exists() and not dead.exists()
    store.remove_stale_temp_files()
    assert sorted(path.name for path in dead.parent.iterdir()) == ["whole"]


def test_a_half_from_another_node_whose_locks_may_not_be_seen_is_swept_when_it_is_old(store):
    store.put("receipts/whole", b"x")
    half = Path(store.uri, "receipts/.part.1.another-node.tmp")
    half.write_bytes(b"half")
    store.remove_stale_temp_files()
    assert half.exists()
    os.utime(half, (0, time.time() - 2 * store_module._OLD_SECONDS))
    store.remove_stale_temp_files()
    assert not half.exists()


def test_a_local_file_is_moved_on_one_disk_and_copied_from_another(store, tmp_path, monkeypatch):
    (tmp_path / "here").write_bytes(b"content")
    store.put("moved", tmp_path / "here")
    assert store.read("moved") == b"content" and not (tmp_path / "here").exists()

    def far(*_) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    (tmp_path / "there").write_bytes(b"content")
    monkeypatch.setattr(Path, "rename", far)
    store.put("copied", tmp_path / "there")
    assert store.read("copied") == b"content" and (tmp_path / "there").exists()
    assert sorted(store.files()) == ["copied", "moved"]


def test_a_put_that_fails_leaves_the_old_file_and_nothing_else(store, monkeypatch, refused):
    store.put("file", b"old")

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stages.storage.disk.os.fsync", full)
    line = refused(store.put, "file", b"new")
    assert (
        line
        == f"{store}/file: cannot be written (No space left on device); make room there, then rerun the same command "
        "to resume"
    )
    assert store.read("file") == b"old"
    assert [path.name for path in store.local_path("").iterdir()] == ["file"]


def test_what_a_killed_writer_left_is_no_file(store, receipt):
    store.local_path(".a.txt.123.tmp").write_bytes(b"half")
    store.local_path("receipts/.part-2.json.123.tmp").write_bytes(b"{")
    assert store.files().keys() == {"a.txt", "b.txt"}
    assert valid_receipts(store).keys() == {"part-1"}


def test_a_put_says_what_it_put(store, tmp_path):
    (tmp_path / "local").write_bytes(b"content")
    for content in (b"content", tmp_path / "local"):
        file = store.put("folder/file", content)
        assert (file.path, file.bytes, file.sha256) == ("folder/file", 7, hashlib.sha256(b"content").hexdigest())
    assert store.read("folder/file") == b"content"


def test_a_part_is_done_only_while_its_files_are_there_with_their_lengths(store, receipt):
    assert valid_receipts(store) == {"part-1": receipt}
    for damage in (lambda: store.put("a.txt", b"fir"), lambda: store.delete("a.txt")):
        damage()
        assert valid_receipts(store) == {}


def test_without_its_receipt_a_part_is_not_done(store, receipt):
    store.delete("receipts/part-1.json")
    assert valid_receipts(store) == {}


def test_a_torn_receipt_is_refused_with_its_name_and_the_mend(store, receipt, refused):
    path = store.local_path("receipts/part-1.json")
    path.write_bytes(path.read_bytes()[:-10])
    line = refused(valid_receipts, store)
    assert line.startswith(f"{store}/receipts/part-1.json: not a receipt (")
    assert line.endswith("delete it and run the same command again")


def test_the_receipt_is_put_last(store, monkeypatch):
    order, put = [], Store.put
    monkeypatch.setattr(Store, "put", lambda self, path, *content: order.append(path) or put(self, path, *content))
    commit(store, "part", PartOutput(files={"b": b"1", "a": b"2"}, rows=0, facts={}), "me")
    assert order == ["a", "b", "receipts/part.json"]


def test_two_attempts_at_one_part_leave_the_same_bytes(store, receipt):
    before = store.read("receipts/part-1.json")
    commit(store, "part-1", PartOutput(files={"a.txt": b"first", "b.txt": b"second"}, rows=3, facts={"x": 1}), "me")
    assert store.read("receipts/part-1.json") == before


def test_every_way_a_file_can_be_broken_is_named(store, receipt, refused):
    file = receipt.files[0]
    assert list(broken_files(store, receipt.files)) == []
    assert read_checked(store, file) == b"first"
    flip_byte(store.local_path("a.txt"), 2)
    assert list(broken_files(store, receipt.files)) == [("a.txt", "has other bytes than its receipt says")]
    assert refused(read_checked, store, file).startswith(f"{store}/a.txt: has other bytes than its receipt says; ")
    store.put("a.txt", b"fir")
    assert list(broken_files(store, receipt.files)) == [("a.txt", "has 3 bytes, its receipt says 5")]
    store.delete("a.txt")
    assert list(broken_files(store, receipt.files)) == [("a.txt", "is missing")]
    assert refused(read_checked, store, file) == f"{store}/a.txt: is missing; run `deit-pipeline verify`"


def test_json_has_one_spelling(store):
    put_json(store, "some.json", {"b": 1, "a": [2]})
    assert store.read("some.json") == b'{"a":[2],"b":1}\n'


def test_a_receipt_of_another_part_is_refused_by_name(store, receipt, refused):
    store.put("receipts/part-2.json", receipt.to_json())
    line = refused(read_receipt, store, "part-2")
    assert line == f"{store}/receipts/part-2.json: is the receipt of part-1; delete it and rerun its stage"
    assert refused(valid_receipts, store) == line


def test_what_lies_beside_receipts_is_nobodys(store, receipt):
    store.put("receipts/part-1.json~", b"an editor's")
    assert valid_receipts(store) == {"part-1": receipt}


def test_a_part_is_not_committed_to_a_folder_that_another_command_has_begun_meanwhile(store, refused):
    put_state(store, "plan.json", Plan(made_from={"seed": 2}, versions={}))
    made = PartOutput(files={"c.txt": b"x"}, rows=1, facts={})
    line = refused(commit, store, "part-9", made, fingerprint({"seed": 1}), code=4)
    assert "plan.json: another command has begun something else here meanwhile" in line
    assert not store.exists("c.txt") and not store.exists("receipts/part-9.json")
    commit(store, "part-9", made, fingerprint({"seed": 2}))


def test_a_store_is_the_same_by_path_and_by_uri_and_after_a_journey(tmp_path):
    by_path, by_uri = Store(f"{tmp_path}/x"), Store(f"file://{tmp_path}/x")
    by_path.child("y").put("file", b"1")
    assert by_uri.child("y").read("file") == b"1"
    assert by_uri.folders() == by_path.folders() == ["y"]
    assert pickle.loads(pickle.dumps(by_uri)).child("y").exists("file")
    by_uri.delete_folder("y")
    by_uri.delete_folder("y")
    assert by_path.folders() == []


def test_credentials_in_a_uri_are_not_shown():
    assert Store("s3://KEY:SECRET@bucket/folder?region=x").display_uri == "s3://bucket/folder"


@pytest.mark.parametrize("uri", ["nothing://here", "s4://bucket/x"])
def test_a_uri_that_cannot_be_opened_is_refused(uri, refused):
    assert refused(Store, uri).startswith(f"{uri}: cannot be opened (")


def test_a_folder_where_a_file_is_cannot_be_written(tmp_path, refused):
    (tmp_path / "file").write_bytes(b"")
    line = refused(Store(str(tmp_path / "file")).put, "a/b", b"x")
    assert line.startswith(f"{Path(tmp_path, 'file')}/a/b: cannot be written (")
    assert line.endswith("); see that this user may write there, or name another workspace")


def test_a_pickled_store_of_a_relative_path_means_the_same_folder_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(Store("here"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pickle.loads(pickled).put("file", b"x")
    assert (tmp_path / "here/file").read_bytes() == b"x"


class CutOff:
    """An open file whose first answers fill half of what is asked for, or only say so, as through a cut connection."""

    def __init__(self, data: bytes, cuts: int, *, owns_up: bool) -> None:
        self.data, self.cuts, self.owns_up, self.at = data, cuts, owns_up, 0

    def size(self) -> int:
        return len(self.data)

    def seek(self, offset: int) -> None:
        self.at = offset

    def readinto(self, buffer: bytearray) -> int:
        self.cuts -= 1
        wanted = len(buffer)
        count = wanted // 2 if self.cuts >= 0 else wanted
        buffer[:count] = self.data[self.at : self.at + count]
        return count if self.owns_up else wanted


@pytest.mark.parametrize("owns_up", [True, False])
def test_an_answer_that_is_cut_off_without_an_error_is_asked_for_again(tmp_path, monkeypatch, refused, owns_up):
    monkeypatch.setattr(store_module, "_WAITS", (0.0, 0.0))
    store, data = Store(str(tmp_path)), bytes(range(200))
    store.local = False
    assert store.read_at(CutOff(data, 2, owns_up=owns_up), 90, 3) == data[3:93]
    assert store.read_at(CutOff(data, 2, owns_up=owns_up), 400, 150) == data[150:]
    assert store.read_at(CutOff(data, 0, owns_up=owns_up), 4, 200) == b""
    assert "cut off before its 90 bytes" in refused(store.read_at, CutOff(data, 3, owns_up=owns_up), 90, 3, code=3)


def test_bytes_that_a_network_garbled_are_read_again_before_they_are_blamed(tmp_path, monkeypatch, refused):
    store = Store(str(tmp_path))
    file, answers = store.put("file", b"right"), [b"wrong"] * 3 + [b"right"]
    monkeypatch.setattr(Store, "read", lambda self, path: answers.pop(0))
    assert "has other bytes" in refused(read_checked, store, file)
    store.local = False
    assert read_checked(store, file) == b"right"
    answers[:] = [b"wrong"] * 3
    assert "has other bytes" in refused(read_checked, store, file)


def test_a_file_is_put_although_another_command_takes_its_folder_away_meanwhile(tmp_path, monkeypatch):
    rename = Path.replace

    def too_late(half, target):
        monkeypatch.undo()
        shutil.rmtree(half.parent)
        return rename(half, target)

    monkeypatch.setattr(Path, "replace", too_late)
    Store(str(tmp_path)).put("folder/file", b"whole")
    assert stored(tmp_path) == {"folder/file": b"whole"}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_folders_takes_files(tmp_path, monkeypatch, code):
    flush = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(disk.os, "fsync", only_files)
    Store(str(tmp_path)).put("a/b", b"x")
    assert (tmp_path / "a/b").read_bytes() == b"x"


def test_a_disk_that_fails_under_a_folder_is_said(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(disk, "_flush_folder", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    assert "broken" in refused(Store(str(tmp_path)).put, "a", b"x")


def test_a_report_takes_away_what_killed_commands_left_of_reports_and_looks_into_no_folder(tmp_path):
    for folder in ("", "below/"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / f"{folder}.evaluation.json.0{TEMPORARY_SUFFIX}").write_bytes(b"half")
    put_report(Store(str(tmp_path)), "evaluation.json", {"a": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["below", "evaluation.json"]
    assert len(list((tmp_path / "below").iterdir())) == 1
