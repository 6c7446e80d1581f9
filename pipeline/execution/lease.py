"""Leases: which commands are at work on a stage's folder, refreshed while they are.

A lease warns a second driver and lets `status` say, on any machine that sees the storage, what is under way and how
fast. Two drivers of one run file make the same bytes twice, and nothing depends on their leases. Two of different run
files would mix: a command puts its lease, then looks for others' and withdraws where one is from something else, so of
two that come at one moment at least one does. A killed command leaves its lease, which counts for nothing once it is
stale or its process is known to be gone; the next command clears it away.
"""

import contextlib
import os
import platform
import sys
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Self

from schemas.errors import MismatchError, UserError
from schemas.receipts import canonical_json, read_json
from stages.storage.store import Store

LEASES = "leases"
_REFRESH_SECONDS = 5.0
_STALE_SECONDS = 60.0
_FIELDS = {"made_by", "host", "pid", "started", "refreshed", "new", "running", "training", "at"}


class Lease:
    """This command's lease of a stage's folder, for the time of a context.

    Args:
        store: the stage's folder.
        made_by: fingerprint of what its parts are made from.
        step: where a training starts; None = no training.

    Attributes:
        path: of its file below the store.
    """

    def __init__(self, store: Store, made_by: str, step: int | None = None) -> None:
        self._store, self._made_by, self._training, self._first = store, made_by, step is not None, step or 0
        self.path = f"{LEASES}/{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self._new = 0
        self._running: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> Self:
        self._started = time.time()
        self._put()
        try:
            self._look_at_others()
        except BaseException:
            _delete(self._store, self.path)
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        _delete(self._store, self.path)

    def count(self, units: int = 1) -> None:
        """Tell of more units that this command has done."""
        self._new += units

    def watch(self, running: list[str]) -> None:
        """Tell which parts are under way."""
        self._running = running

    def _look_at_others(self) -> None:
        for path, lease in remove_stale_leases(self._store):
            if path == self.path:
                continue
            if lease["made_by"] == self._made_by:
                more = "both go on, which harms nothing and wastes work"
                print(f"warning: {_about(self._store, lease)}; {more}", file=sys.stderr, flush=True)
            else:
                raise MismatchError(
                    f"{_about(self._store, lease)}, from something else than this run file says; wait for its end, "
                    "stop it, or work under another name"
                )

    def _refresh(self) -> None:
        while not self._over.wait(_REFRESH_SECONDS):
            with contextlib.suppress(UserError, OSError):
                self._put()

    def _put(self) -> None:
        lease = {
            "made_by": self._made_by,
            "host": platform.node(),
            "pid": os.getpid(),
            "started": self._started,
            "refreshed": time.time(),
            "new": self._new,
            "running": self._running,
            "training": self._training,
            "at": self._first + self._new,
        }
        self._store.put(self.path, canonical_json(lease))


def remove_stale_leases(store: Store) -> list[tuple[str, dict[str, Any]]]:
    """Clear away the leases of commands that are gone; the paths of the others, and what they say."""
    live = []
    for path, lease in _all(store):
        if is_live(lease):
            live.append((path, lease))
        else:
            _delete(store, path)
    return live


def live_leases(store: Store) -> list[dict[str, Any]]:
    """The leases of commands that are at work on a stage's folder now."""
    return [lease for _, lease in _all(store) if is_live(lease)]


def is_live(lease: dict[str, Any]) -> bool:
    """Whether the lease's command may still be at work."""
    if time.time() - float(lease.get("refreshed", 0)) > _STALE_SECONDS:
        return False
    if lease.get("host") != platform.node():
        return True
    try:
        os.kill(int(lease["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _delete(store: Store, path: str) -> None:
    with contextlib.suppress(UserError, OSError):  # a store that is gone has its own error
        store.delete(path)


def _all(store: Store) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name in sorted(store.files(LEASES)):
        path = f"{LEASES}/{name}"
        with contextlib.suppress(FileNotFoundError, UserError):  # ended meanwhile, or torn
            lease = read_json(store.read(path), path)
            if lease.keys() >= _FIELDS:
                found.append((path, lease))
    return found


def _about(store: Store, lease: dict[str, Any]) -> str:
    ago = max(0.0, time.time() - float(lease["refreshed"]))
    return f"{store}: another command is at work here ({lease['host']}, process {lease['pid']}, seen {ago:.0f} s ago)"
