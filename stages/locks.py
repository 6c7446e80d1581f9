"""Files under a lock that ends with the process that holds it, however that ends.

So a half-written file is known to be left behind: nobody holds it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
            if _is(path, file):
                yield file
                return


def remove_if_left(half: Path) -> None:
    """Take a half-written file away if the process that made it is gone."""
    with contextlib.suppress(OSError), half.open("r+b") as file:  # NFS locks only what may be written
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is(half, file):
            half.unlink()


def _is(path: Path, file: Any) -> bool:
    """Whether the open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
