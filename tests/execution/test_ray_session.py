"""What is said and done around a Ray session, without starting one."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.execution import code_shipping, ray_session
from stages.storage.locks import scratch_folder


@pytest.fixture
def attached(monkeypatch):
    """Joins of a cluster are noted and not made; its nodes are as they are written down, look after look."""
    joins, looks = [], []
    monkeypatch.setattr(ray_session, "_check_gcs", lambda ray, address: None)
    monkeypatch.setattr(ray_session, "_connect", lambda ray, address, ship: joins.append(ship))
    monkeypatch.setattr(ray_session, "asks_for_token", lambda: True)
    monkeypatch.setattr(ray_session, "look_at_nodes", lambda ray: looks.pop(0) if looks else [])

    class Ray:
        shutdown = staticmethod(lambda: None)

    return lambda *found: (looks.extend(found), ray_session._attach(Ray, "head:6379"), joins)[2]


def node(name="node-1", source="", asks=True):
    return code_shipping.Node(name, code_shipping.version(), source or code_shipping.fingerprint(), asks)


def test_a_cluster_without_a_token_is_warned_of_and_one_with_is_not(attached, capsys, monkeypatch):
    attached([node()])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(ray_session, "asks_for_token", lambda: False)
    attached([node(), node(asks=False)])
    assert "warning: head:6379: this Ray asks for no token" in capsys.readouterr().err


def test_a_command_with_a_token_joins_no_cluster_whose_workers_would_refuse_it(attached, refused):
    line = refused(attached, [node(), node("node-2", asks=False)])
    assert line.startswith("cluster.address = head:6379: node node-2 asks for no token")


@pytest.fixture
def asked(monkeypatch):
    """What becomes of a join, where Ray's own client fails with an error; Ray is not loaded."""
    monkeypatch.setattr(ray_session, "lacks_token", lambda: False)

    class TokenRefused(RuntimeError):
        pass

    def ask(error, address="127.0.0.1:6379"):
        def client(address):
            raise error

        return ray_session._check_gcs(
            SimpleNamespace(exceptions=exceptions, _raylet=SimpleNamespace(GcsClient=client)), address
        )

    exceptions = SimpleNamespace(RayError=RuntimeError, AuthenticationError=TokenRefused)
    return ask, TokenRefused


def test_a_token_that_is_not_the_clusters_is_said_before_ray_tries_for_long(asked, refused):
    ask, token_refused = asked
    line = refused(ask, token_refused("InvalidAuthToken"))
    assert line.startswith("cluster.address = 127.0.0.1:6379: this Ray asks for a token that the command does not have")


def test_a_token_that_is_missing_is_said_before_ray_ends_the_process(asked, refused, monkeypatch):
    ask, _ = asked
    monkeypatch.setattr(ray_session, "lacks_token", lambda: True)
    line = refused(ask, AssertionError("never asked"))
    assert line.startswith("cluster.address = 127.0.0.1:6379: this Ray asks for a token that the command does not have")


def test_a_port_of_something_else_is_no_ray(asked, refused):
    ask, _ = asked
    line = refused(ask, RuntimeError("Timed out while waiting for GCS"))
    assert line == "cluster.address = 127.0.0.1:6379: no Ray there (Timed out while waiting for GCS)"


def test_the_address_of_a_ray_job_is_asked_where_the_command_says_auto(asked, refused, monkeypatch):
    ask, token_refused = asked
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ask(token_refused("never asked"), "auto")
    ask(token_refused("never asked"), "ray://127.0.0.1:10001")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert "asks for a token" in refused(ask, token_refused("InvalidAuthToken"), "auto")


def test_the_package_is_shipped_only_where_a_node_lacks_it(attached):
    assert attached([node()]) == [False]


def test_a_node_that_lacks_the_package_gets_it(attached):
    assert attached([node(source="other")], [node()]) == [False, True]


def test_a_node_that_cannot_be_shipped_to_is_an_error(attached, refused):
    line = refused(attached, [node(source="other"), node("node-2", "other")], [node(), node("node-2", "other")])
    assert line.startswith("cluster.address = head:6379: node node-2 cannot import the package that was shipped to it")


def test_another_version_on_a_node_is_an_error_and_other_source_of_this_one_is_shipped(monkeypatch, refused):
    monkeypatch.setattr(code_shipping, "version", lambda: "2.0")

    def seen(version: str, source: str) -> list[code_shipping.Node]:
        return [code_shipping.Node("far", version, source, True)]

    assert code_shipping.lacking_nodes(seen("2.0", code_shipping.fingerprint())) == []
    assert code_shipping.lacking_nodes(seen("2.0", "other source")) == ["far"]
    assert code_shipping.lacking_nodes(seen("", "")) == ["far"]
    line = refused(code_shipping.lacking_nodes, seen("1.0", "other source"))
    assert line.startswith("node far of the cluster has deit-pipeline 1.0, this is 2.0")


def test_the_folder_of_a_killed_command_is_cleared_away_and_that_of_a_living_one_is_not(tmp_path):
    held = multiprocessing.Event()
    process = multiprocessing.get_context("fork").Process(target=hold_a_folder, args=(tmp_path, held))
    process.start()
    assert held.wait(30)
    (of_another,) = tmp_path.iterdir()
    with scratch_folder(ray_session._FOLDER, tmp_path):
        assert of_another.is_dir()
    process.kill()
    process.join()
    assert of_another.is_dir()
    with scratch_folder(ray_session._FOLDER, tmp_path) as mine:
        assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    assert list(tmp_path.iterdir()) == []


def hold_a_folder(root: Path, held) -> None:
    with scratch_folder(ray_session._FOLDER, root):
        held.set()
        time.sleep(600)


def test_a_ray_that_was_loaded_before_takes_the_tokens_of_the_session():
    """As in a notebook, or a program with a Ray of its own, which is loaded under another environment."""
    program = (
        "import ray\nfrom pipeline.execution.ray_session import ray_session\nfrom schemas.config import ClusterConfig\n"
        "with ray_session(ClusterConfig(address='local', cpus=1)) as session: print(session.is_initialized())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment = kept | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "True" in done.stdout + done.stderr, done.stderr[-2000:]


def test_ray_finds_a_home_for_a_user_who_has_none(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # a container's user without an entry
    with pytest.raises(RuntimeError):
        Path("~/ray_results").expanduser()  # what Ray Train does when it is imported
    with ray_session.environment(ray_session.session_environment(local=True)):
        assert Path("~/ray_results").expanduser() == Path("/nonexistent/ray_results")
    assert "HOME" not in os.environ


def test_whatever_keeps_an_embedded_ray_from_starting_is_a_line(tmp_path, refused):
    class Ray:
        @staticmethod
        def init(**options):
            raise Exception("The current node timed out\nduring startup.")  # as Ray does, bare

    line = refused(ray_session._start_local, Ray, tmp_path)
    assert line.startswith("cluster.address = local: Ray does not start (The current node timed out during startup.)")
