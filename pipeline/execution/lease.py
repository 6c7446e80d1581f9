"""Leases: which commands run on a stage's folder, refreshed while they run.

A lease warns a second driver and lets `status` show, on any machine that sees the storage, progress and rate. Two
drivers of one run file make the same bytes twice, and nothing depends on their leases. Two of different run files
would mix: a command writes its lease, then looks for others and withdraws if one has another identity, so of two that
start at one moment at least one withdraws.

A killed command leaves its lease. In the same PID namespace the process itself shows whether the command runs, even if
suspended for hours. From elsewhere a lease counts that was refreshed within a minute, and an older
one is watched for a minute before it is removed, since clocks of two machines may be a day apart.
"""

import contextlib
import os
import platform
import sys
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.errors import IncompleteError, MismatchError, UserError
from schemas.lease import LeaseRecord
from stages.storage.commit import read_state
from stages.storage.store import Store

LEASES = "leases"
_REFRESH_SECONDS = 5.0
_STALE_SECONDS = 60.0


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
        self._me = this_process()
        self._new = 0
        self._running: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> Self:
        self._started = time.time()
        self._put()
        self._thread.start()
        try:
            self._look_at_others()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
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
        others = [(path, lease) for path, lease in remove_stale_leases(self._store, self._made_by) if path != self.path]
        for path, lease in others:
            if lease.made_by == self._made_by:
                more = "both go on, which harms nothing and wastes work"
                print(f"warning: {_about(self._store, lease)}; {more}", file=sys.stderr, flush=True)
            elif is_live(lease) or _is_recent(self._store, path, lease) or _changes(self._store, path, lease):
                raise MismatchError(
                    f"{_about(self._store, lease)}, from something else than this run file says; wait for its end, "
                    "stop it, or work under another name"
                )
            else:
                _delete(self._store, path)

    def _refresh(self) -> None:
        while not self._over.wait(_REFRESH_SECONDS):
            with contextlib.suppress(UserError, OSError):
                self._put()

    def _put(self) -> None:
        lease = LeaseRecord(
            made_by=self._made_by,
            **self._me,
            started=self._started,
            refreshed=time.time(),
            new=self._new,
            running=tuple(self._running),
            training=self._training,
            at=self._first + self._new,
        )
        self._store.put(self.path, lease.to_json())


def this_process() -> dict[str, Any]:
    """What tells this process from all others: the fields of a lease that name it."""
    pid = os.getpid()
    return {
        "host": platform.node(),
        "pid": pid,
        "boot": _boot(),
        "namespace": _namespace(),
        "born": _born(pid) or 0,
    }


def remove_stale_leases(store: Store, made_by: str) -> list[tuple[str, LeaseRecord]]:
    """Clear away the leases of commands that are gone; the paths of the others, and what they say.

    One that may be gone is cleared away where it is from the same as `made_by`: its command, if it is at work after
    all, puts it again, and nothing depends on it meanwhile. One from something else stays until it was watched.
    """
    left = []
    for path, lease in _all(store):
        live = is_live(lease)
        if live is None and lease.made_by == made_by:
            live = _is_recent(store, path, lease)
        if live is False:
            _delete(store, path)
        else:
            left.append((path, lease))
    return left


def live_leases(store: Store) -> list[LeaseRecord]:
    """The leases of commands that are at work on a stage's folder now, as far as one look can tell."""
    found = []
    for path, lease in _all(store):
        live = is_live(lease)
        if live or (live is None and _is_recent(store, path, lease)):
            found.append(lease)
    return found


def is_live(lease: LeaseRecord) -> bool | None:
    """Whether the lease's process is there, be it suspended; None where it cannot be seen from here.

    It is seen from its own boot of its machine, and in its own namespace of process ids; a later process of its number
    began at another time.
    """
    if lease.host == platform.node() and not lease.boot and not _exists(lease.pid):
        return False  # of version 0.1.0, which knew its host and number alone
    if lease.host != platform.node() or (lease.boot, lease.namespace) != (_boot(), _namespace()):
        return None
    return lease.born == _born(lease.pid)


def _is_recent(store: Store, path: str, lease: LeaseRecord) -> bool:
    """Whether a lease was refreshed within a minute, by its command's clock or by the storage's."""
    written = store.modified(path) or 0.0
    return min(abs(time.time() - lease.refreshed), abs(time.time() - written)) <= _STALE_SECONDS


def _changes(store: Store, path: str, lease: LeaseRecord) -> bool:
    """Watch a lease until it changes, or for a minute: no clock but this process's own counts."""
    print(
        f"waiting up to {_STALE_SECONDS:.0f} s: {store.display_path(path)} is of a command on {lease.host} "
        "that may be at work "
        "from another run file",
        file=sys.stderr,
        flush=True,
    )
    end = time.monotonic() + _STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(_REFRESH_SECONDS, _STALE_SECONDS / 10))
        now = dict(_all(store)).get(path)
        if now != lease:
            return now is not None
    return False


def _boot() -> str:
    """Names a boot of a machine; "" where the system does not."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _namespace() -> str:
    """Names the namespace of this process's id; "" where the system does not."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _born(pid: int) -> int | None:
    """When a process began, in ticks since the boot; None where there is none, 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() or not _exists(pid) else 0
    except ProcessLookupError:
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _delete(store: Store, path: str) -> None:
    with contextlib.suppress(UserError, OSError):  # a store that is gone has its own error
        store.delete(path)


def _all(store: Store) -> list[tuple[str, LeaseRecord]]:
    found = []
    for name in sorted(store.files(LEASES)):
        path = f"{LEASES}/{name}"
        try:
            lease = read_state(store, path, LeaseRecord.from_json)
        except IncompleteError:
            raise
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
            continue
        if lease is not None:  # else it ended meanwhile
            found.append((path, lease))
    return found


def _about(store: Store, lease: LeaseRecord) -> str:
    ago = max(0.0, time.time() - lease.refreshed)
    return f"{store}: another command is at work here ({lease.host}, process {lease.pid}, seen {ago:.0f} s ago)"
