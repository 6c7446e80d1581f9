"""Files and folders under a lock that ends with the process that holds it, however that ends.

So a temporary file that no process holds is known to be stale.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SEMAPHORES = Path("/dev/shm")
"""Where Linux keeps semaphores that have a name."""


@contextlib.contextmanager
def locked(path: Path, *, needed: bool = True) -> Iterator[Any]:
    """The file under its lock, open to read and write; it is made where it is not there.

    It is made again where its last holder took it away. Where a file system knows no locks and none is `needed`, the
    file comes without.
    """
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            with contextlib.nullcontext() if needed else contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if still_named(path, file):
                yield file
                return


def held(path: Path) -> Any:
    """The file, open to read and write, under a lock that many may hold: until all have closed it nobody removes it.

    Raises:
        FileNotFoundError: if it is not there, or was removed before it could be held.
    """
    file = path.open("r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        if not still_named(path, file):
            raise FileNotFoundError(path)
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def scratch_folder(prefix: str, root: Path | None = None) -> Iterator[Path]:
    """A temporary folder under a lock, deleted at the end; those that killed processes left are deleted first.

    A forked child that lets go of it deletes nothing: the folder is that of the process that made it.

    Args:
        prefix: how its name begins.
        root: where it is made; None = where temporary files go.
    """
    root, owner = root or Path(tempfile.gettempdir()), os.getpid()
    for old in root.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _held(old):
            _remove(old)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_held(folder))
            except (FileNotFoundError, BlockingIOError):
                continue  # another command has found it before it was locked, and takes it away
            except OSError:
                pass  # a file system without locks, where no stale file is removed
            try:
                yield folder
            finally:
                if os.getpid() == owner:
                    _remove(folder)
            return


def semaphore_prefix(folder: Path) -> str:
    """How POSIX semaphores are called that are removed with a scratch folder, by whoever removes that."""
    return folder.name.lstrip(".")


def _remove(folder: Path) -> None:
    for semaphore in _SEMAPHORES.glob(f"sem.{semaphore_prefix(folder)}-*"):
        semaphore.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The lock of a folder; raises OSError where another holds it, or it is gone."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(folder.stat(), os.fstat(opened)):
            raise FileNotFoundError(folder)
        yield
    finally:
        os.close(opened)


def remove_if_left(path: Path) -> None:
    """Remove a file that no process holds: a temporary file of a dead process, a copy without readers."""
    with contextlib.suppress(OSError), path.open("r+b") as file:  # NFS locks only what may be written
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if still_named(path, file):
            path.unlink()


def still_named(path: Path, file: Any) -> bool:
    """Whether the open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
