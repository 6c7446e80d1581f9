"""Data processes leave nothing behind, and signals to the command's group do not reach them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from stages.data import servers
from tests.support.world import ROOT

WORKING = """
import json, multiprocessing, os, time
import torch
from torch.utils.data import Dataset
from multiprocessing import resource_tracker
from tests.data import test_servers
from stages.data.loader import load

if __name__ == "__main__":
    multiprocessing.current_process()._config["semprefix"] = f"/deit-test-{os.getpid()}"
    items = load(test_servers.Groups(), workers=1, order=range(2))
    tracker = resource_tracker._resource_tracker._pid
    print(json.dumps([os.getpgid(0), *next(items).tolist(), os.getpgid(tracker)]), flush=True)
    next(items)
    print("second", flush=True)
    input()
"""


class Groups:
    """Items that say the process group of the data process that builds them, the second after two seconds."""

    def __getitem__(self, number):
        import torch

        time.sleep(2 * number)
        return torch.tensor([os.getpgid(0)])


def semaphores(pid: int) -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"sem.deit-test-{pid}-")}


@pytest.fixture
def short_folder():
    """A folder whose path leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="deit-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("length", [10, 90])
def test_a_long_temporary_folder_is_not_used_for_sockets(monkeypatch, length):
    folder = "/tmp/" + length * "x"
    monkeypatch.setattr(tempfile, "tempdir", folder)
    assert str(servers._root()) == (folder if length == 10 else "/tmp")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_group_leaves_neither_folders_nor_semaphores(short_folder, number):
    tmp_path = short_folder
    (tmp_path / "program.py").write_text(WORKING)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "t")}
    (tmp_path / "t").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], env=environment, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        own, worker, tracker = json.loads(process.stdout.readline())
        assert own not in (worker, tracker)
        assert semaphores(process.pid)
    finally:
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
    end = time.monotonic() + 60
    while semaphores(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not semaphores(process.pid)
    left = [path.name for path in Path(tmp_path, "t").iterdir()]
    assert all(name.startswith(".deit-data-") for name in left)
    script = "from stages.data.servers import start_servers; start_servers()"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, cwd=ROOT)
    assert list(Path(tmp_path, "t").iterdir()) == []  # the next command that has data processes removes it
