"""Trackio: a line is a row of the run; a local database is asked how many rows it has, so none is doubled.

A Space is not asked: a process that is killed after it sent rows, and before it wrote down that it did, sends these
again.
"""

import time
from collections.abc import Sequence

import trackio
from trackio.sqlite_storage import SQLiteStorage

from schemas.config import RunFile
from stages.storage.store import Store
from stages.trackers.about import About
from stages.trackers.tracker import Line

_SECONDS = 30.0


class Run:
    """The run at Trackio, which knows runs by their name; see `stages.trackers.tracker.Tracker`."""

    def __init__(self, about: About, config: RunFile, store: Store) -> None:
        space = config.tracking.trackio_space
        self._project, self._name, self._local = config.tracking.project, f"{about.name}-{about.id[:8]}", not space
        self._run = trackio.init(
            project=self._project,
            name=self._name,
            space_id=space or None,
            config={**about.config, "identity": about.identity, "id": about.id},
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def send(self, lines: Sequence[Line], sent: int) -> None:
        """Append the rows that the run has not, and see that they arrive."""
        for line in lines[self._rows() if self._local else sent :]:
            self._run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])
        end = time.monotonic() + _SECONDS
        while self._local and self._rows() < len(lines):
            if time.monotonic() > end:
                raise TimeoutError(f"rows do not arrive in the database of project {self._project}")
            time.sleep(0.1)

    def close(self, *, done: bool) -> None:
        """Wait for the rows under way."""
        self._run.finish()

    def _rows(self) -> int:
        return int(SQLiteStorage.get_log_count(self._project, self._name))
