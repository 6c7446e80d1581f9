"""The parents of data processes: the server that forks them, and Python's tracker of their semaphores.

Both lead process groups of their own. So a signal to the command's group reaches no data process under the step that
the command is about to finish, and a SIGKILL to it leaves the tracker alive, which then removes the semaphores. Their
sockets are in a folder that the next command removes if this process is killed.
"""

import contextlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import Any

from stages.storage.locks import scratch_folder, semaphore_prefix

_OURS = ".deit-"
_PREFIX = f"{_OURS}data-"
_LONGEST_ROOT = 55
"""Characters above such a folder, below which sockets lie, whose paths have 107 at most."""
_LAST = -200
"""Priority of what runs at this process's end after multiprocessing has removed its own folder, at -100."""


@cache
def start_servers() -> None:
    """Start both, once a process; whatever starts data processes calls it first."""
    _sockets_folder()
    with _own_groups():
        resource_tracker.ensure_running()
        forkserver.ensure_running()


def end_with_parent() -> None:
    """End this data process when the process ends that it builds for, however that ends.

    The server lives as long as its data processes do, so none of them would ever see another parent.
    """
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def keep_sockets_in(folder: str) -> None:
    """Put the sockets into a folder that somebody else removes; before the first data process starts.

    Semaphores are named after the scratch folder that it is or lies in, and so go with that: Ray kills the tracker too.
    """
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        util.get_temp_dir()  # which is chosen once a process
    finally:
        tempfile.tempdir = before
    scratch = next((one for one in (Path(folder), *Path(folder).parents) if one.name.startswith(_OURS)), None)
    if scratch is not None:
        process: Any = multiprocessing.current_process()
        process._config["semprefix"] = f"/{semaphore_prefix(scratch)}"
    _removed_by.append(folder)


_removed_by: list[str] = []


def _sockets_folder() -> None:
    if _removed_by:
        return
    stack = contextlib.ExitStack()
    folder: Path = stack.enter_context(scratch_folder(_PREFIX, _root()))
    util.Finalize(None, stack.close, exitpriority=_LAST)
    keep_sockets_in(str(folder))


def _root() -> Path:
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) <= _LONGEST_ROOT else Path("/tmp")


@contextlib.contextmanager
def _own_groups() -> Iterator[None]:
    """What multiprocessing starts within leads a process group of its own; it has no option for that."""
    spawn = util.spawnv_passfds

    def spawn_leader(path: Any, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
        kept = [(os.POSIX_SPAWN_DUP2, one, one) for one in descriptors]  # onto itself: it stays open in the child
        return os.posix_spawn(path, list(arguments), os.environ, file_actions=kept, setpgroup=0)

    util.spawnv_passfds = spawn_leader  # type: ignore[assignment]
    try:
        yield
    finally:
        util.spawnv_passfds = spawn
