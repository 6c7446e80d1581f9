"""Local copies of shards from a network: bounded, shared by all processes of a machine, filled ahead.

A copy is named by its sha256, which is proven when it is made, so a copy can be wrong for nobody: not for another run,
not after the shards were made again. How the bound holds is `stages/storage/bounded.py`. Rejected: reading ranges of
remote tars, which costs a request an image and view.
"""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.config import CacheConfig
from schemas.errors import UserError
from schemas.receipts import StoredFile
from stages.storage.bounded import GB, BoundedFolder, cache_folder
from stages.storage.store import Store

_CHUNK = 8 << 20
_PATIENCE = 0.05


class ShardCache:
    """The copies of one store's shards. Picklable; each process fills ahead in a thread of its own.

    Args:
        store: the store of the shards.
        settings: folder and size.
    """

    def __init__(self, store: Store, settings: CacheConfig) -> None:
        self._store, self._settings = store, settings
        self.folder = cache_folder(settings.folder, "shards")
        self._limit = int(settings.gigabytes * GB)
        self._copies = BoundedFolder(self.folder, ".tar", self._limit, "cache.gigabytes")
        self._wanted: tuple[list[StoredFile], list[StoredFile]] = ([], [])
        self._filler: threading.Thread | None = None

    def __reduce__(self) -> Any:
        return ShardCache, (self._store, self._settings)

    def read(self, file: StoredFile, size: int, offset: int) -> bytes:
        """Bytes of a shard, which is copied first where it is not here.

        Raises:
            UserError: if there is no space, or the shard is missing or has other bytes than its receipt says.
        """
        path = self._path(file)
        while True:
            with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as copy:
                os.utime(copy.fileno())
                return os.pread(copy.fileno(), size, offset)
            self._copy(file)

    def forget(self, file: StoredFile) -> None:
        """Drop the copy of a shard, so that the next read fetches it again."""
        self._path(file).unlink(missing_ok=True)

    def expect(self, now: Sequence[StoredFile], after: Sequence[StoredFile]) -> None:
        """Fill ahead: the shards that are read now, then of those after them as many as fit beside.

        Raises:
            UserError: if those that are read now do not fit.
        """
        if (list(now), list(after)) == self._wanted:
            return
        needed = sum(file.bytes for file in now)
        if needed > self._limit:
            raise UserError(
                f"cache.gigabytes = {self._settings.gigabytes:g}: the {len(now)} shards that are read together take "
                f"{needed / GB:.3g}; raise it or lower train.window"
            )
        self._wanted = list(now), list(after)
        if self._filler is None or not self._filler.is_alive():
            self._filler = threading.Thread(target=self._fill, daemon=True)
            self._filler.start()

    def _fill(self) -> None:
        """Copy the queued shards; a failure is reported where the shard is read."""
        seen = None
        while seen is not (wanted := self._wanted):
            seen, room = wanted, self._limit
            for file in (*wanted[0], *wanted[1]):
                room -= file.bytes
                if room < 0 or self._wanted is not wanted:
                    break
                with contextlib.suppress(UserError):
                    if not self._path(file).exists():
                        self._copy(file)

    def _path(self, file: StoredFile) -> Path:
        return self._copies.file(file.sha256)

    def _copy(self, file: StoredFile) -> None:
        """Make a copy, unless another process makes it meanwhile."""
        try:
            with self._copies.half(file.sha256) as (out, half):
                if not self._path(file).exists():
                    self._copies.refuse_larger(file.bytes)
                    while not self._copies.set_aside(file.bytes, out):
                        time.sleep(_PATIENCE)  # others' copies are under way and count
                    self._download(file, out)
                    half.rename(self._path(file))
        except OSError as error:
            raise UserError(
                f"cache.folder = {self.folder}: cannot keep a copy of {self._store.display_path(file.path)} "
                f"({error.strerror or error}); name a folder on a larger disk, or lower cache.gigabytes"
            ) from None

    def _download(self, file: StoredFile, out: Any) -> None:
        try:
            if not any(self._downloaded(file, out) for _ in range(self._store.read_attempts)):
                raise UserError(
                    f"{self._store.display_path(file.path)}: has other bytes than its receipt says; run "
                    "`deit-pipeline verify`"
                )
        except FileNotFoundError:
            raise UserError(f"{self._store.display_path(file.path)}: is missing; run `deit-pipeline verify`") from None

    def _downloaded(self, file: StoredFile, out: Any) -> bool:
        """Copy a shard once; whether its bytes are those of its receipt."""
        digest = hashlib.sha256()
        with self._store.open(file.path) as remote:
            for start in range(0, file.bytes, _CHUNK):
                data = self._store.read_at(remote, _CHUNK, start)
                digest.update(data)
                os.pwrite(out.fileno(), data, start)
        return digest.hexdigest() == file.sha256
