"""What is said and done around a Ray session, without starting one."""

import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import session, shipping
from stages.locks import scratch_folder


@pytest.fixture
def attached(monkeypatch):
    """Joins of a cluster are noted and not made; nodes that lack the package as they are written down."""
    joins, lacking = [], []
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(session, "_join", lambda ray, address, ship: joins.append(ship))
    monkeypatch.setattr(session, "_authenticated", lambda: True)
    monkeypatch.setattr(session, "lacking_nodes", lambda ray: lacking.pop(0) if lacking else [])

    class Ray:
        shutdown = staticmethod(lambda: None)

    return lambda *found: (lacking.extend(found), session._attach(Ray, "head:6379"), joins)[2]


def test_a_cluster_without_a_token_is_warned_of_and_one_with_is_not(attached, capsys, monkeypatch):
    attached()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(session, "_authenticated", lambda: False)
    attached()
    assert "warning: head:6379: this Ray asks for no token" in capsys.readouterr().err


def test_the_package_is_shipped_only_where_a_node_lacks_it(attached):
    assert attached() == [False]


def test_a_node_that_lacks_the_package_gets_it(attached):
    assert attached(["node-1"], []) == [False, True]


def test_a_node_that_cannot_be_shipped_to_is_an_error(attached, refused):
    line = refused(attached, ["node-1", "node-2"], ["node-2"])
    assert line.startswith("cluster.address = head:6379: node node-2 cannot import the package that was shipped to it")


class OneNode:
    """As much of Ray as the look at a cluster of one node needs; `get` answers as it is told."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, *answer: str) -> None:
        self.get = lambda reference, timeout: answer
        self.nodes = lambda: [{"NodeID": "0" * 56, "NodeName": "far", "Alive": True}]
        bound = SimpleNamespace(remote=lambda: None)
        self.remote = lambda **_: lambda function: SimpleNamespace(options=lambda **_: bound)


def test_another_version_on_a_node_is_an_error_and_other_source_of_this_one_is_shipped(monkeypatch, refused):
    monkeypatch.setattr(shipping, "version", lambda: "2.0")
    assert shipping.lacking_nodes(OneNode("2.0", shipping.fingerprint())) == []
    assert shipping.lacking_nodes(OneNode("2.0", "other source")) == ["far"]
    assert shipping.lacking_nodes(OneNode("", "")) == ["far"]
    line = refused(shipping.lacking_nodes, OneNode("1.0", "other source"))
    assert line.startswith("node far of the cluster has deit-pipeline 1.0, this is 2.0")


def test_the_folder_of_a_killed_command_is_cleared_away_and_that_of_a_living_one_is_not(tmp_path):
    held = multiprocessing.Event()
    process = multiprocessing.get_context("fork").Process(target=hold_a_folder, args=(tmp_path, held))
    process.start()
    assert held.wait(30)
    (of_another,) = tmp_path.iterdir()
    with scratch_folder(session._FOLDER, tmp_path):
        assert of_another.is_dir()
    process.kill()
    process.join()
    assert of_another.is_dir()
    with scratch_folder(session._FOLDER, tmp_path) as mine:
        assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    assert list(tmp_path.iterdir()) == []


def hold_a_folder(root: Path, held) -> None:
    with scratch_folder(session._FOLDER, root):
        held.set()
        time.sleep(600)
