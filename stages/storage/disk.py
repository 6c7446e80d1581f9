"""Files on a disk that are there whole or not at all: written under a hidden name, flushed, renamed."""

import contextlib
import errno
import mmap
import os
import platform
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.storage.locks import locked

TEMPORARY_SUFFIX = f".{platform.node()}.tmp"
"""How the names of this node's half-written files end."""
_TRIES = 10
"""Of putting a file, while another command takes its folder away."""


def put_on_disk(target: Path, content: bytes | Path) -> None:
    """Put bytes, or a local file, which is moved; its folder is made where it is not there.

    Raises:
        OSError: of the disk; then the old file stays, and nothing else does.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # another command takes the folder away
            return _put_in_folder(target, content)
    _put_in_folder(target, content)


def _put_in_folder(target: Path, content: bytes | Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with _temporary_file(temporary, content) as file:
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def _flush_folder(path: Path) -> None:
    """Flush a folder's names to the disk, where its file system can: CIFS and some of FUSE's cannot, and say EINVAL."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)


@contextlib.contextmanager
def _temporary_file(temporary: Path, content: bytes | Path) -> Iterator[Any]:
    """The hidden file with the content, under a lock; a local file is moved there, or copied from another disk."""
    if isinstance(content, Path):
        with locked(content, needed=False) as file:
            try:
                content.rename(temporary)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            else:
                yield file
                return
    with locked(temporary, needed=False) as file, bytes_of(content) as data:
        file.write(data)
        yield file


@contextlib.contextmanager
def bytes_of(content: bytes | Path) -> Iterator[Any]:
    """A file's bytes without a copy of it in memory."""
    if isinstance(content, bytes):
        yield content
    elif content.stat().st_size == 0:
        yield b""
    else:
        with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped
