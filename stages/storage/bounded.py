"""A local folder that never takes more than its limit, shared by all processes of a machine.

Its files are named by their content, so a file serves every process. A file's full length is reserved on the disk
before its first byte comes, so the limit holds at every moment; least recently used files are evicted, but not those a
process holds. A process that dies leaves a temporary file without lock, and the next one that needs space
removes it.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from stages.storage.locks import locked, remove_if_left, still_named

GB = 1_000_000_000


class BoundedFolder:
    """A folder of files with one suffix that together take at most `limit` bytes.

    Args:
        path: their folder; made when it is needed.
        suffix: of their names.
        limit: in bytes.
        key: of the run file that sets the limit, for errors.
    """

    def __init__(self, path: Path, suffix: str, limit: int, key: str) -> None:
        self.path, self.limit = path, limit
        self._suffix, self._key = suffix, key

    def file(self, name: str) -> Path:
        """The path of a name's file, if it exists."""
        return self.path / f"{name}{self._suffix}"

    @contextlib.contextmanager
    def half(self, name: str) -> Iterator[tuple[Any, Path]]:
        """The temporary file of a name under its lock, and its path: filled and renamed, or deleted."""
        self.path.mkdir(parents=True, exist_ok=True)
        half = self.path / f".{name}.half"
        with locked(half) as out:
            try:
                yield out, half
            finally:
                if still_named(half, out):
                    half.unlink()

    def set_aside(self, needed: int, out: Any, keep: Callable[[Path], bool] = lambda _: False) -> bool:
        """Reserve the space for a temporary file, in zeros, if there is some or can be freed.

        Args:
            needed: its length.
            out: the file, under its lock.
            keep: files that are not evicted, although nobody holds them.

        Raises:
            OSError: if the disk is full.
        """
        with locked(self.path / ".lock"):
            if not self._make_room(needed, out, keep):
                return False
            os.ftruncate(out.fileno(), 0)
            os.posix_fallocate(out.fileno(), 0, max(needed, 1))
            return True

    def refuse_larger(self, needed: int) -> None:
        """Refuse a single shard that would never fit.

        Raises:
            UserError: if it does not.
        """
        if needed > self.limit:
            raise UserError(f"{self._key} = {self.limit / GB:g}: one shard takes {needed / GB:.3g}; raise it")

    def _make_room(self, needed: int, out: Any, keep: Callable[[Path], bool]) -> bool:
        for half in self.path.glob(".*.half"):
            remove_if_left(half)
        mine = os.fstat(out.fileno()).st_size
        halves = sum(size for _, size, _ in _used(self.path.glob(".*.half"))) - mine
        files = sorted(_used(self.path.glob(f"*{self._suffix}")))  # last: a file renamed now counts twice
        left = self.limit - needed - halves - sum(size for _, size, _ in files)
        for _, size, file in files:
            if left >= 0:
                break
            if not keep(file):
                remove_if_left(file)
                left += 0 if file.exists() else size
        return left >= 0


def cache_folder(setting: str, name: str) -> Path:
    """The folder of a cache: from the run file, or the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(setting or f"{root}/deit-pipeline/{name}").expanduser()


def _used(paths: Iterable[Path]) -> Iterator[tuple[int, int, Path]]:
    """When each file was last used, its length, and itself; those that are gone by now are left out."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            yield about.st_mtime_ns, about.st_size, path
