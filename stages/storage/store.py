"""Storage on any URI that pyarrow.fs opens.

Putting a file is all or nothing for a reader: on POSIX it is written under a unique hidden name, flushed to the disk,
and renamed; on an object store one upload makes one object. Across a network errors are given time to pass, and what
looks wrong is asked for again. How a part becomes done is `stages.storage.commit`.
"""

import contextlib
import errno
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow.fs as pafs

from schemas.errors import IncompleteError, UserError
from schemas.receipts import StoredFile
from schemas.secrets import bare_uri
from stages.storage import disk
from stages.storage.disk import TEMPORARY_SUFFIX, bytes_of
from stages.storage.file_systems import first_line, open_file_system, uri_options
from stages.storage.locks import remove_if_left

T = TypeVar("T")

_WAITS = (1.0, 3.0)
"""Seconds between tries of an object store, in each of which its client retries by itself."""
_REMOTE_BUFFER = 1 << 16
_MARK_BYTES = 16
_OLD_SECONDS = 3600.0


class Store:
    """A folder on a local disk, a shared file system or an object store."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") or "/"
        if "://" in uri:
            self._fs, self._base = open_file_system(uri)
        else:
            self._fs, self._base = pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(self.uri))
        self.local = isinstance(self._fs, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.absolute,)  # a process elsewhere may work in another folder

    def __str__(self) -> str:
        return self.display_uri

    @property
    def display_uri(self) -> str:
        """The URI without credentials or options, for people and for files."""
        return bare_uri(self.uri) if "://" in self.uri else self.uri

    @property
    def read_attempts(self) -> int:
        """How often what looks wrong is asked for: a connection cut within an answer may garble it silently."""
        return 1 if self.local else 3

    @property
    def absolute(self) -> str:
        """The URI, or the path from the root, so that it means the same in any working folder."""
        return self.uri if "://" in self.uri else str(self._base)

    @property
    def portable(self) -> str:
        """The same without credentials, by which others with their own can open the store."""
        parts = urlsplit(self.absolute)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.scheme else self.absolute

    def child(self, folder: str) -> "Store":
        """The store of a folder below this one."""
        if "://" not in self.uri:
            return Store(f"{self.uri}/{folder}")
        parts = urlsplit(self.uri)
        return Store(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(folder)}")))

    def parent(self) -> "Store":
        """The store of the folder that this one lies in."""
        if "://" not in self.uri:
            return Store(os.path.dirname(self.absolute))
        parts = urlsplit(self.uri)
        return Store(urlunsplit(parts._replace(path=parts.path.rstrip("/").rpartition("/")[0])))

    def folder_name(self) -> str:
        """The last part of its path."""
        return os.path.basename(str(self._base))

    def display_path(self, path: str) -> str:
        """How a file of this store is called in messages."""
        return f"{self.display_uri}/{path}"

    def open(self, path: str) -> Any:
        """Open a file for reads at offsets; raises FileNotFoundError where there is none."""
        for _ in range(self.read_attempts):
            file = self.with_retries(lambda: self._fs.open_input_file(f"{self._base}/{path}"))
            if self.with_retries(file.size):  # an answer cut within its head looks like an empty file's
                break
        return file

    def stream(self, path: str) -> io.BufferedReader:
        """Open a file for buffered reads and seeks; raises FileNotFoundError where there is none."""
        if self.local:
            return open(f"{self._base}/{path}", "rb")

        def ask() -> Any:
            file = self._fs.open_input_file(f"{self._base}/{path}")
            if file.size() != self._fs.get_file_info(f"{self._base}/{path}").size:  # a head may be cut in a number
                raise OSError(f"{path}: two answers disagree about its length")
            return file

        return io.BufferedReader(_RemoteFile(self, self.with_retries(ask)), _REMOTE_BUFFER)

    def read(self, path: str) -> bytes:
        """All bytes of a file; raises FileNotFoundError where there is none."""
        if self.local:
            with open(f"{self._base}/{path}", "rb", buffering=0) as plain:  # a hundred thousand receipts in seconds
                return plain.read()
        with self.open(path) as file:
            return self.read_at(file, self.with_retries(file.size), 0)

    def read_at(self, file: Any, count: int, offset: int) -> bytes:
        """Bytes of an open file, fewer only at its end.

        Across a network a cut connection can shorten an answer without an error, and its client then takes for the
        rest what its memory held before, another file's bytes maybe. So the end of the memory is marked beforehand.
        """
        wanted = max(0, min(count, self.with_retries(file.size) - offset))

        def ask() -> bytes:
            if self.local:
                return bytes(file.read_at(wanted, offset))
            data, mark = bytearray(wanted), os.urandom(min(wanted, _MARK_BYTES))
            data[wanted - len(mark) :] = mark
            file.seek(offset)
            if file.readinto(data) < wanted or (mark and data.endswith(mark)):
                raise OSError(f"an answer was cut off before its {wanted} bytes")
            return bytes(data)

        return self.with_retries(ask)

    def files(self, folder: str = "") -> dict[str, int]:
        """Names and lengths in bytes of the files directly in a folder; empty where there is none."""
        found = self._list(folder)
        return {info.base_name: info.size for info in found if info.is_file and not info.base_name.startswith(".")}

    def files_below(self, folder: str) -> Iterator[tuple[str, int]]:
        """Paths below the store and lengths in bytes of the files in a folder at any depth."""
        for info in self._list(folder, recursive=True):
            if info.is_file:
                yield info.path.removeprefix(f"{self._base}/"), info.size

    def folders(self, folder: str = "") -> list[str]:
        """Sorted names of the folders directly in a folder, but hidden ones; empty where there is none."""
        found = (info.base_name for info in self._list(folder) if not info.is_file)
        return sorted(name for name in found if not name.startswith("."))

    def exists(self, path: str) -> bool:
        """Whether the file is there."""
        return bool(self._info(path).is_file)

    def is_folder(self) -> bool:
        """Whether the store is a folder that is there."""
        return self._info("").type == pafs.FileType.Directory

    def length(self, path: str) -> int | None:
        """A file's length in bytes, or None where there is none."""
        info = self._info(path)
        return int(info.size) if info.is_file else None

    def modified(self, path: str) -> float | None:
        """When a file was written, by the storage's clock, in seconds since 1970; None where there is none."""
        info = self._info(path)
        return info.mtime.timestamp() if info.is_file and info.mtime else None

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._base}/{path}")

    def delete_folder(self, folder: str) -> None:
        """Delete a folder with all that is in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(f"{self._base}/{folder}")

    def put(self, path: str, content: bytes | Path, sha256: str = "") -> StoredFile:
        """Store a complete file under its name, or nothing; a local file on the same disk is moved.

        `sha256` is that of the content, where it is known.

        Raises:
            UserError: if the store cannot take it, a full disk for example.
        """
        target = f"{self._base}/{path}"
        stored = _described(path, content, sha256)
        try:
            if self.local:
                disk.put_on_disk(Path(target), content)
            else:
                with bytes_of(content) as data:
                    self.with_retries(lambda: self._upload(target, data))
        except OSError as error:
            cause = error.strerror or first_line(error)
            raise UserError(f"{self.display_path(path)}: cannot be written ({cause}); {_hint(error)}") from None
        return stored

    def with_retries(self, do: Callable[[], T]) -> T:
        """Ask the store for something; where it is across a network, an error is given time to pass.

        Raises:
            IncompleteError: if it does not.
        """
        if self.local:
            return do()
        for wait in (*_WAITS, None):
            try:
                return do()
            except FileNotFoundError:
                raise
            except OSError as error:
                if wait is None:
                    raise IncompleteError(
                        f"{self.display_uri}: {first_line(error)}; rerun the same command to resume"
                    ) from None
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _upload(self, target: str, data: Any) -> None:
        with self._fs.open_output_stream(target) as out:
            out.write(data)

    def _list(self, folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
        path = f"{self._base}/{folder}".rstrip("/")
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
        for _ in range(self.read_attempts):
            if found := self.with_retries(lambda: self._fs.get_file_info(selector)):
                return found
        return []  # believed when said again: an answer cut within its head looks like an empty folder's

    def _info(self, path: str) -> pafs.FileInfo:
        return self.with_retries(lambda: self._fs.get_file_info(f"{self._base}/{path}".rstrip("/") or "/"))

    def remove_stale_temp_files(self, *, below: bool = True) -> None:
        """Remove the temporary files that killed writers left, in folders `below` too; those of writers at work stay.

        Locks of another node may not be seen on this one: what came from there has to be old as well.
        """
        if self.local:
            with contextlib.suppress(FileNotFoundError):  # a folder that another command takes away meanwhile
                for file in Path(self._base).glob("**/.*.tmp" if below else ".*.tmp"):
                    if file.name.endswith(TEMPORARY_SUFFIX) or time.time() - file.stat().st_mtime > _OLD_SECONDS:
                        remove_if_left(file)

    def local_path(self, path: str) -> Path | None:
        """The file's path where this store is a disk, else None."""
        return Path(f"{self._base}/{path}") if self.local else None


class _RemoteFile(io.RawIOBase):
    """A remote file as Python's own readers want it."""

    def __init__(self, store: Store, file: Any) -> None:
        self._store, self._file, self._at, self._size = store, file, 0, file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        data = self._store.read_at(self._file, count, self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def split_uri(value: str) -> tuple[Store, str]:
    """The store of a path's or URI's folder, and its name there."""
    path, options = uri_options(value)
    folder, _, name = path.rpartition("/")
    return Store((folder or ("/" if value.startswith("/") else ".")) + options), name


def _described(path: str, content: bytes | Path, sha256: str) -> StoredFile:
    """A receipt's entry of a file."""
    if isinstance(content, bytes):
        return StoredFile(path=path, bytes=len(content), sha256=sha256 or hashlib.sha256(content).hexdigest())
    with content.open("rb") as file:
        digest = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(path=path, bytes=content.stat().st_size, sha256=digest)


def _hint(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room there, then rerun the same command to resume"
    return "see that this user may write there, or name another workspace"
