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
from stages.storage.locks import scratch_folder
from tests.support.world import ROOT

WORKING = """
import json, multiprocessing, os, time
import torch
from torch.utils.data import Dataset
from multiprocessing import resource_tracker
from tests.data import test_servers
from stages.data.loader import load

if __name__ == "__main__":
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


def semaphores(folder: Path) -> set[str]:
    """Those named after the scratch folders within."""
    names = tuple(f"sem.{scratch.name.lstrip('.')}-" for scratch in folder.iterdir())
    return {name for name in os.listdir("/dev/shm") if names and name.startswith(names)}


def start_working(folder: Path) -> tuple[subprocess.Popen, dict[str, str]]:
    """A command that has data processes, with `folder`/t for temporary files; the process, and its environment."""
    (folder / "program.py").write_text(WORKING)
    (folder / "t").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "t")}
    process = subprocess.Popen(
        [sys.executable, str(folder / "program.py")], env=environment, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return process, environment


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
    process, environment = start_working(tmp_path)
    try:
        own, worker, tracker = json.loads(process.stdout.readline())
        assert own not in (worker, tracker)
        assert semaphores(tmp_path / "t")
    finally:
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
    end = time.monotonic() + 60
    while semaphores(tmp_path / "t") and time.monotonic() < end:
        time.sleep(0.1)
    assert not semaphores(tmp_path / "t")
    left = [path.name for path in Path(tmp_path, "t").iterdir()]
    assert all(name.startswith(".deit-data-") for name in left)
    script = "from stages.data.servers import start_servers; start_servers()"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, cwd=ROOT)
    assert list(Path(tmp_path, "t").iterdir()) == []  # the next command that has data processes removes it


def test_semaphores_whose_tracker_was_killed_too_go_with_the_scratch_folder(short_folder):
    process, _ = start_working(short_folder)
    groups = json.loads(process.stdout.readline())  # the command's, the data process's and the tracker's
    for group in (groups[2], groups[1], groups[0]):
        os.killpg(group, signal.SIGKILL)
    process.communicate(timeout=60)
    left = semaphores(short_folder / "t")
    assert left
    with scratch_folder(servers._PREFIX, short_folder / "t"):
        assert not left & set(os.listdir("/dev/shm"))
