"""What is private in Ray is still there and means the same, and nothing else in the project uses any of it."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._private import ray_constants, services
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

from pipeline.execution import ray_compat
from pipeline.execution.ray_session import environment
from tests.support.project import project_sources

ROOT = Path(__file__).parents[2]


def test_only_the_compat_module_reaches_into_ray():
    private = re.compile(r"\bray\._\w+|from ray\._|\bray\.\w+\._")
    found = {path for path, source in project_sources().items() if private.search(source)}
    shipped = "pipeline/execution/code_shipping.py"  # a function that needs nothing of this package
    assert found == {"pipeline/execution/ray_compat.py", shipped}


def test_an_embedded_node_is_started_in_process_groups_of_its_own_and_on_loopback():
    popen, clusters = services.ConsolePopen, ray_constants.ENABLE_RAY_CLUSTER
    with ray_compat.embedded_node():
        assert services.get_node_ip_address() == "127.0.0.1"
        process = services.ConsolePopen(["sleep", "60"])
        try:
            assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
        finally:
            process.kill()
            process.wait()
    assert (services.ConsolePopen, ray_constants.ENABLE_RAY_CLUSTER) == (popen, clusters)
    assert "ConsolePopen(" in inspect.getsource(services.start_ray_process)
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR in ray_compat.LOOPBACK


def test_ports_of_metrics_are_read_from_the_environment():
    from ray.autoscaler._private import constants
    from ray.dashboard import consts

    for module, name in ((constants, "AUTOSCALER_METRIC_PORT"), (consts, "DASHBOARD_METRIC_PORT")):
        assert f'env_integer("{name}"' in inspect.getsource(module) and name in ray_compat.LOOPBACK


def test_a_daemon_that_ended_is_named():
    def node(**ended):
        processes = {name: [SimpleNamespace(process=SimpleNamespace(poll=lambda code=code: code))]
                     for name, code in ended.items()}  # fmt: skip
        worker = SimpleNamespace(_global_node=SimpleNamespace(all_processes=processes))
        return SimpleNamespace(_private=SimpleNamespace(worker=worker))

    assert ray_compat.ended_daemon(node(gcs_server=None, raylet=None, monitor=1)) == ""
    assert ray_compat.ended_daemon(node(gcs_server=None, raylet=-9)) == "raylet"
    assert (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET) == ("gcs_server", "raylet")
    assert ray_compat.ended_daemon(ray) == "" and ray_compat.embedded_folder(ray) == ""


def test_errors_of_lost_processes_are_told_from_those_of_lost_nodes():
    from ray.exceptions import ActorDiedError, OutOfMemoryError, WorkerCrashedError

    assert ray_compat.died_alone(ray, WorkerCrashedError()) and ray_compat.died_alone(ray, OutOfMemoryError("x"))
    assert ray_compat.died_alone(ray, ActorDiedError())
    assert not ray_compat.died_alone(ray, RuntimeError())


@pytest.mark.parametrize(("token", "said"), [(None, "True True"), ("x" * 64, "True False")])
def test_whether_there_is_a_token_is_known_without_a_cluster(tmp_path, token, said):
    """In a process of its own, since Ray keeps the first token that it reads."""
    program = "from pipeline.execution import ray_compat as it; print(it.asks_for_token(), it.lacks_token())"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment = kept | {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment |= {"RAY_AUTH_TOKEN": token} if token else {}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == said and not (tmp_path / ".ray").exists()


def test_the_training_joins_its_processes_itself():
    config = ray_compat.own_group_config()
    backend = config.backend_cls()
    assert isinstance(config, TorchConfig) and isinstance(backend, Backend) and backend.share_cuda_visible_devices
    assert type(backend).on_start is Backend.on_start


def test_the_environment_is_put_back_key_by_key(monkeypatch):
    monkeypatch.setenv("DEIT_A", "1")
    monkeypatch.delenv("DEIT_B", raising=False)
    with pytest.raises(KeyError), environment({"DEIT_A": None, "DEIT_B": "2"}):
        assert "DEIT_A" not in os.environ and os.environ["DEIT_B"] == "2"
        os.environ["DEIT_C"] = "another's"
        raise KeyError
    assert os.environ["DEIT_A"] == "1" and "DEIT_B" not in os.environ and os.environ.pop("DEIT_C") == "another's"
