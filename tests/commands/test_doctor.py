"""`doctor`: each check fires on what it is for, and says what to do."""

import importlib.metadata
import json
import resource
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from pipeline.commands import doctor as module
from pipeline.commands.doctor import ERROR, OK, WARNING
from tests.support.command_line import typed
from tests.support.world import ROOT

Usage = namedtuple("Usage", "total used free")
GIB = 2**30


def test_this_machine_is_looked_at_and_each_check_has_a_line(tmp_path):
    (tmp_path / "deit.toml").write_text(f'workspace = "{tmp_path}/ws"\n')
    code, out, err = typed("doctor", "-c", str(tmp_path / "deit.toml"), "--json")
    found = json.loads(out.splitlines()[0])
    names = [one["check"] for one in found["checks"]]
    assert names == ["python", "torch", "cuda", "ray", "disk", "shared memory", "open files", "processes", "ray token"]
    assert code == (0 if found["ok"] else 1)
    assert found["checks"][1]["found"] == importlib.metadata.version("torch")
    assert all(one["state"] == OK or one["fix"] for one in found["checks"])
    assert all(name in err for name in names)


def test_something_required_that_is_wrong_exits_1(tmp_path, monkeypatch):
    (tmp_path / "deit.toml").write_text(f'workspace = "{tmp_path}/ws"\n')
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    code, out, err = typed("doctor", "-c", str(tmp_path / "deit.toml"), "--json")
    assert code == 1 and json.loads(out)["ok"] is False
    assert "ulimit -n 65536" in err and err.splitlines()[-1].startswith("deit-pipeline: doctor: ")


@pytest.mark.parametrize(("free", "state"), [(30 * GIB, OK), (5 * GIB, WARNING), (GIB // 2, ERROR)])
def test_room_on_the_disk(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GIB, 0, free))
    check = module.check_disk(str(tmp_path / "not/there/yet"))
    assert (check.state, bool(check.fix)) == (state, state != OK)
    assert module.check_disk("s3://bucket/ws").state == OK


@pytest.mark.parametrize(("free", "state"), [(8 * GIB, OK), (GIB, WARNING), (GIB // 16, ERROR)])
def test_shared_memory(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    check = module.check_shared_memory(tmp_path)
    assert (check.state, "--shm-size" in check.fix) == (state, state != OK)
    assert module.check_shared_memory(tmp_path / "none").state == OK


def test_python_packages_gpus_and_open_files(monkeypatch):
    assert module.check_python((3, 10, 4)).state == ERROR and module.check_python((3, 12, 0)).state == OK
    missing = module.check_package("no_such_package")
    assert missing.state == ERROR and "pip install" in missing.fix
    states = [module.check_open_files(limit).state for limit in (-1, 65536, 1024, 64)]
    assert states == [OK, OK, WARNING, ERROR]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert module.check_cuda("cuda").state == ERROR and module.check_cuda("cpu").state != ERROR


def test_processes_of_the_user_and_of_the_container(tmp_path, monkeypatch):
    container = tmp_path / "pids.max"
    for soft, text, limit in ((-1, "max", -1), (500, "max", 500), (500, "200", 200), (-1, "300", 300), (100, "", 100)):
        container.write_text(f"{text}\n")
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert module.process_limit(container) == limit
    assert module.process_limit(tmp_path / "none") == 100
    assert [module.check_processes(limit).state for limit in (-1, 4096, 100)] == [OK, OK, WARNING]


def test_the_token_of_a_cluster(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module.check_token("local").state == OK
    assert module.check_token("auto").state == WARNING
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    check = module.check_token("auto")
    assert check.fix == "set RAY_AUTH_MODE=token to use it" and "hunter2" not in check.found
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert module.check_token("auto").state == OK


def test_doctor_loads_torch_only_to_check_it():
    program = (
        "import sys; import cli, pipeline.commands.doctor; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
