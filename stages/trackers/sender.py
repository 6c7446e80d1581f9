"""Sends the lines of committed checkpoints to trackers, each by a thread of its own, without a step waiting for it.

Only lines that a checkpoint holds are sent: a resumed run repeats none and misses none. A thread holds the newest lines
alone, as those include all earlier ones, so nothing piles up behind a slow tracker. How many lines were sent is written
after they were, beside the run and in no receipt:

    runs/<run>/trackers/<tracker>.json

A process that is killed between the two sends these lines again; a tracker that can be asked what it holds is asked
(`stages/trackers/<tracker>.py`). No failure of a tracker ends a training: it is told once, and the lines are sent with
those of the next checkpoint, at the end, or when the same command is typed again.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Sequence

from schemas.config import RunFile
from schemas.errors import last_line
from schemas.receipts import canonical_json
from schemas.secrets import hide_secrets
from stages.storage.store import Store
from stages.trackers.about import FOLDER, About
from stages.trackers.tracker import Line, Tracker, connect

_SECONDS_AT_THE_END = 20.0


class Senders:
    """The trackers of one process of a training.

    Args:
        names: of the trackers.
        config: the run file.
        store: of the run's folder.
        about: makes what they are told of the run; called only where there is one.
        seconds: that the end waits for all of them together.
    """

    def __init__(
        self,
        names: Sequence[str],
        config: RunFile,
        store: Store,
        about: Callable[[], About],
        *,
        seconds: float = _SECONDS_AT_THE_END,
    ) -> None:
        self._seconds = seconds
        told = about() if names else None
        self._senders = [_Sender(name, told, config, store) for name in names if told]

    def offer(self, lines: Sequence[Line]) -> None:
        """Have all lines so far sent; returns at once."""
        for sender in self._senders:
            sender.offer(lines)

    def close(self, *, done: bool) -> None:
        """Wait a bounded time until all is sent; `done` if the training is complete."""
        for sender in self._senders:
            sender.end(done=done)
        over = threading.Event()
        timer = threading.Timer(self._seconds, over.set)
        timer.start()
        for sender in self._senders:
            sender.wait(over)
        timer.cancel()


class _Sender:
    """One tracker and its thread, which begins with the first lines that the tracker does not have."""

    def __init__(self, name: str, about: About, config: RunFile, store: Store) -> None:
        self._name, self._about, self._config, self._store = name, about, config, store
        self._path = f"{FOLDER}/{name}.json"
        self._tracker: Tracker | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._newest: tuple[Line, ...] = ()
        self._tried = self._sent = self._read_mark()
        self._over = self._done = self._warned = False

    def offer(self, lines: Sequence[Line]) -> None:
        with self._changed:
            self._newest = tuple(lines)
            if self._thread is None and len(lines) > self._sent:
                self._thread = threading.Thread(target=self._work, name=f"tracker-{self._name}", daemon=True)
                self._thread.start()
            self._changed.notify()

    def end(self, *, done: bool) -> None:
        with self._changed:
            self._over, self._done = True, done
            self._tried = self._sent  # what failed is tried once more
            self._changed.notify()

    def wait(self, over: threading.Event) -> None:
        """Wait for the thread until it ends or `over` is set."""
        while self._thread is not None and self._thread.is_alive():
            if over.is_set():
                self._warn("does not answer in time")
                return
            self._thread.join(0.05)

    def _work(self) -> None:
        while (lines := self._next()) is not None:
            try:
                self._tracker = self._tracker or connect(self._name, self._about, self._config, self._store)
                self._tracker.send(lines, self._sent)
                self._sent = len(lines)
                self._write_mark()
            except (Exception, SystemExit) as error:  # whatever a library raises; the training continues
                self._tracker = None
                self._warn(last_line(error))
        if self._tracker is not None:
            try:
                self._tracker.close(done=self._done)
            except (Exception, SystemExit) as error:
                self._warn(last_line(error))

    def _next(self) -> tuple[Line, ...] | None:
        """The newest lines, once there are some that were not tried; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or len(self._newest) > self._tried)
            if len(self._newest) <= self._tried:
                return None
            self._tried = len(self._newest)
            return self._newest

    def _read_mark(self) -> int:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            mark = json.loads(self._store.read(self._path))
            return int(mark["sent"]) if mark["id"] == self._about.id else 0
        return 0

    def _write_mark(self) -> None:
        self._store.put(self._path, canonical_json({"id": self._about.id, "sent": self._sent}))

    def _warn(self, cause: str) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"warning: train.trackers: {self._name}: {hide_secrets(cause)}; the training continues; rerun the "
                "same command to send what is missing",
                file=sys.stderr,
                flush=True,
            )
