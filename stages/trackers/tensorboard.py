"""TensorBoard: one event file, written again from all lines each time, so it has neither gaps nor duplicates.

It is written like any other file, to wherever the workspace is. Rejected: a writer that appends while training, whose
files of killed attempts overlap.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from schemas.config import RunFile
from stages.storage.store import Store
from stages.trackers.about import About
from stages.trackers.tracker import Line

EVENTS_FILE = "tensorboard/events.out.tfevents.0"
_NOT_DRAWN = ("step",)


class Run:
    """The run's event file; see `stages.trackers.tracker.Tracker`."""

    def __init__(self, about: About, config: RunFile, store: Store) -> None:
        self._about, self._store = about, store

    def send(self, lines: Sequence[Line], sent: int) -> None:
        """Write the file again."""
        self._store.put(EVENTS_FILE, event_file(lines, self._about))

    def close(self, *, done: bool) -> None:
        """Nothing is open."""


def event_file(lines: Sequence[Line], about: About) -> bytes:
    """An event file with one scalar for each number of each line, at the line's step, and the run file as text."""
    from torch.utils.tensorboard import SummaryWriter

    texts = {"run": {"name": about.name, "id": about.id, **about.identity}, "config": about.config}
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, values in texts.items():
                writer.add_text(name, "    " + json.dumps(values, indent=1, ensure_ascii=False).replace("\n", "\n    "))
            for line in lines:
                for name, value in line.items():
                    if name not in _NOT_DRAWN:
                        writer.add_scalar(name, value, line["step"])
        return next(Path(folder).iterdir()).read_bytes()
