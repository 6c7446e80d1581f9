"""Hours: how long each part took, and on what, beside receipts and never in them: their bytes stay the same.

    WORKSPACE/hours/<the stage's folder>/<process>-00000.jsonl

Each process that makes parts has files of its own, and puts a line after each part: a process that is killed loses none
of those that it committed. What was made twice took its time twice, and counts so; what a kill undid is not counted.
A line that cannot be put is left out: no part fails for it. No torch is loaded here.
"""

import contextlib
import json
import threading
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from stages.storage.store import Store

FOLDER = "hours"
_LINES_A_FILE = 100
"""A file is put anew with each of its lines."""
_CPU_INFO = Path("/proc/cpuinfo")


class Hours:
    """Takes down how long the parts of a stage's folder take this process; for any number of threads.

    Args:
        stage: the stage's folder, two levels below the workspace.
        device: "cpu" or "cuda", on which they are made.
    """

    def __init__(self, stage: Store, device: str) -> None:
        self._store, self._device = hours_of(stage), device_name(device)
        self._process, self._file = uuid.uuid4().hex[:12], 0
        self._lines: list[bytes] = []
        self._lock = threading.Lock()

    def add(self, part: str, seconds: float, devices: int = 1, lanes: int = 1) -> None:
        """Take down one part.

        Args:
            part: its name.
            seconds: from its beginning to its commit.
            devices: that it kept busy.
            lanes: parts that shared these at a time.
        """
        said = {"part": part, "seconds": round(seconds, 3), "devices": devices, "lanes": lanes, "device": self._device}
        with self._lock, contextlib.suppress(UserError, OSError):
            if len(self._lines) >= _LINES_A_FILE:
                self._lines, self._file = [], self._file + 1
            self._lines.append(json.dumps(said, ensure_ascii=False).encode() + b"\n")
            self._store.put(f"{self._process}-{self._file:05d}.jsonl", b"".join(self._lines))


def hours_of(stage: Store) -> Store:
    """The folder that holds the hours of a stage's folder."""
    workspace = stage.parent().parent()
    kind, name = stage.parent().folder_name(), stage.folder_name()
    return workspace.child(FOLDER).child(kind).child(name)


def read_hours(stage: Store) -> list[dict[str, Any]]:
    """All lines about a stage's folder; those that are damaged are left out."""
    store, found = hours_of(stage), []
    for name in sorted(store.files()):
        with contextlib.suppress(FileNotFoundError):
            for line in store.read(name).splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict) and one.keys() >= {"seconds", "devices", "lanes", "device"}]


def device_hours(stage: Store) -> dict[str, float]:
    """Hours of devices that the parts of a stage's folder took, by the device's name."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for one in read_hours(stage):
        seconds[str(one["device"])] += float(one["seconds"]) * int(one["devices"]) / int(one["lanes"])
    return {device: round(total / 3600, 6) for device, total in sorted(seconds.items())}


def device_name(kind: str) -> str:
    """What the maker calls a device of this machine: that of torch's current GPU, or the processor."""
    if kind == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    with contextlib.suppress(OSError, StopIteration):
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return "CPU"
