"""Data processes leave nothing behind, and signals to the command's group do not reach them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.world import ROOT

WORKING = """
import json, os, time
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


def semaphores() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("sem.mp-")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_group_leaves_neither_folders_nor_semaphores(tmp_path, number):
    (tmp_path / "program.py").write_text(WORKING)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "t")}
    (tmp_path / "t").mkdir()
    before = semaphores()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], env=environment, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        own, worker, tracker = json.loads(process.stdout.readline())
        assert own not in (worker, tracker)
        mine = semaphores() - before
        assert mine
    finally:
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
    end = time.monotonic() + 60
    while mine & semaphores() and time.monotonic() < end:
        time.sleep(0.1)
    assert not mine & semaphores()
    left = [path.name for path in Path(tmp_path, "t").iterdir()]
    assert all(name.startswith(".deit-pipeline-processes-") for name in left)
    script = "from stages.data.servers import start_servers; start_servers()"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, cwd=ROOT)
    assert list(Path(tmp_path, "t").iterdir()) == []  # the next command that has data processes removes it
