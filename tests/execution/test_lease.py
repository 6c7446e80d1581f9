"""Leases warn of a second driver and are gone afterwards; stale ones and killed processes' count for nothing."""

import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipeline.execution import lease as lease_module
from pipeline.execution.lease import Lease, live_leases, this_process
from schemas.lease import LeaseRecord
from stages.storage.store import Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


def gone() -> int:
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    return process.pid


def put(store: Store, **changes) -> None:
    now = time.time()
    values = {"made_by": "me", "host": "elsewhere", "pid": 7, "started": now, "refreshed": now, "new": 0, "running": []}
    values |= {"training": False, "at": 0}
    store.put("leases/other.json", json.dumps(values | changes).encode())
    os.utime(store.local_path("leases/other.json"), (now, (values | changes)["refreshed"]))


def test_a_lease_is_there_while_its_command_works_and_gone_afterwards(store, capsys):
    with Lease(store, "me") as lease:
        lease.count(2)
        (found,) = live_leases(store)
        assert (found.host, found.pid) == (platform.node(), os.getpid())
    assert store.files("leases") == {} and capsys.readouterr().err == ""


def test_a_second_driver_is_warned_of_and_its_lease_left_alone(store, capsys):
    put(store)
    with Lease(store, "me"):
        assert len(live_leases(store)) == 2
    assert "another command is at work here (elsewhere, process 7, seen 0 s ago)" in capsys.readouterr().err
    assert list(store.files("leases")) == ["other.json"]


def test_a_command_withdraws_from_a_folder_where_another_works_from_something_else(store, refused):
    put(store, made_by="another")
    line = refused(Lease(store, "me").__enter__, code=4)
    assert "another command is at work here (elsewhere, process 7, seen 0 s ago), from something else" in line
    assert list(store.files("leases")) == ["other.json"]


@pytest.mark.parametrize("changes", [{"refreshed": time.time() - 61}, {"host": platform.node(), "pid": gone()}])
def test_the_lease_of_a_killed_command_is_cleared_away_without_a_word(store, capsys, changes):
    put(store, **changes)
    assert live_leases(store) == []
    with Lease(store, "me"):
        pass
    assert store.files("leases") == {} and capsys.readouterr().err == ""


def test_a_lease_is_refreshed_with_what_is_under_way(store, monkeypatch):
    monkeypatch.setattr(lease_module, "_REFRESH_SECONDS", 0.01)
    with Lease(store, "me") as lease:
        lease.watch(["shard-000001"])
        lease.count()
        end = time.monotonic() + 30
        while live_leases(store)[0].running != ("shard-000001",):
            assert time.monotonic() < end
        assert live_leases(store)[0].new == 1


def test_a_torn_lease_stops_nobody(store):
    store.put("leases/torn.json", b'{"host"')
    with Lease(store, "me"):
        assert len(live_leases(store)) == 1


def hold(folder: str, seed: str, pipe) -> None:
    """In a process of its own: hold a lease until told otherwise."""
    with Lease(Store(folder), seed):
        pipe.send("held")
        pipe.poll(60)


@pytest.fixture
def holder(store):
    """A process that holds a lease of something else."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(store.uri, "another", theirs))
    process.start()
    assert ours.poll(60)
    yield process
    with contextlib.suppress(ProcessLookupError, BrokenPipeError):
        os.kill(process.pid, signal.SIGCONT)
        ours.send("end")
    process.join()


def age(store: Store, seconds: float) -> None:
    """As if the one lease there had not been refreshed for so long, by every clock."""
    (name,) = store.files("leases")
    path = store.local_path(f"leases/{name}")
    lease = LeaseRecord.from_json(path.read_bytes(), name)
    path.write_bytes(lease.model_copy(update={"refreshed": lease.refreshed - seconds}).to_json())
    os.utime(path, (0, time.time() - seconds))


def test_a_suspended_command_keeps_its_lease_however_old_it_is(store, holder, refused):
    os.kill(holder.pid, signal.SIGSTOP)
    age(store, 3600)
    assert [one.pid for one in live_leases(store)] == [holder.pid]
    line = refused(Lease(store, "me").__enter__, code=4)
    assert f"process {holder.pid}, seen 3600 s ago), from something else" in line
    assert len(store.files("leases")) == 1


def test_a_killed_command_of_something_else_holds_nobody_up(store, holder):
    holder.kill()
    holder.join()
    with Lease(store, "me"):
        assert [one.made_by for one in live_leases(store)] == ["me"]


def test_a_later_process_of_the_same_number_is_not_taken_for_the_command(store):
    put(store, **(this_process() | {"born": this_process()["born"] + 1}), made_by="another")
    with Lease(store, "me"):
        assert list(store.files("leases")) != ["other.json"] and len(store.files("leases")) == 1


def namespaced() -> list[str]:
    """The start of a command line that runs a program in a pid namespace of its own."""
    start = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*start, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a namespace of process ids")
    return start


HOLD = """
import sys, time
from pipeline.execution.lease import Lease
from schemas.lease import LeaseRecord
from stages.storage.store import Store
with Lease(Store(sys.argv[1]), "another"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_command_in_another_namespace_of_the_same_host_is_watched_before_its_lease_is_taken(
    store, monkeypatch, refused, capsys
):
    monkeypatch.setattr(lease_module, "_STALE_SECONDS", 7.0)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*namespaced(), sys.executable, "-c", HOLD, store.uri], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        age(store, 3600)  # until it is refreshed: as by a clock that is behind
        line = refused(Lease(store, "me").__enter__, code=4)
        assert ", from something else than this run file says" in line
        assert "may be at work from another run file" in capsys.readouterr().err
        process.stdin.close()


@pytest.mark.parametrize("off", [-86400.0, 86400.0], ids=["a day behind", "a day ahead"])
def test_the_lease_of_a_dead_host_with_another_clock_is_cleared_away_once_it_was_watched(store, monkeypatch, off):
    monkeypatch.setattr(lease_module, "_STALE_SECONDS", 0.5)
    put(store, made_by="another", refreshed=time.time() + off)
    os.utime(store.local_path("leases/other.json"), (0, time.time() - 100))
    assert live_leases(store) == []
    with Lease(store, "me"):
        assert [one.made_by for one in live_leases(store)] == ["me"]


@pytest.mark.parametrize("data", [b"{}", b"[]", b"null", b'{"host"', b"\xff"])
def test_a_malformed_lease_is_a_line_and_stops_nobody(store, data, capsys):
    store.put("leases/bad.json", data)
    with Lease(store, "me"):
        assert len(live_leases(store)) == 1
    assert f"warning: {store}/leases/bad.json: is damaged (" in capsys.readouterr().err
