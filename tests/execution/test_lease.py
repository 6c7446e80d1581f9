"""Leases warn of a second driver and are gone afterwards; stale ones and killed processes' count for nothing."""

import json
import multiprocessing
import os
import platform
import time

import pytest

from pipeline.execution import lease as lease_module
from pipeline.execution.lease import Lease, live_leases
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
