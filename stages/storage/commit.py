"""The commit protocol of a part, and the proof of its completion.

A part is made in a local staging folder, then every file of it is *written* to the workspace, then its receipt. A crash
therefore leaves either no receipt, and the part is made again to the same bytes, or a complete part. A receipt counts
only while its files are there with their lengths; `verify` re-reads the bytes.

It is a part of `stages`, not of `pipeline`, because the training loop commits its own checkpoints. Rejected: completion
markers without content (they survive a damaged file) and a database of completed parts (it may contradict the files).
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import IncompleteError, MismatchError, UserError
from schemas.plan import Plan
from schemas.receipts import PartOutput, Receipt, StoredFile, canonical_json
from schemas.state import StoredState
from stages.storage.store import Store

RECEIPTS = "receipts"
PLAN = "plan.json"
MANIFEST = "manifest.json"

T = TypeVar("T")
StateT = TypeVar("StateT", bound=StoredState)


def commit(store: Store, part: str, made: PartOutput, made_by: str) -> Receipt:
    """Write a part's files, then its receipt.

    Raises:
        MismatchError: if the folder's plan has become that of something else.
    """
    refuse_other_plan(store, made_by)
    files = tuple(store.put(name, content, made.sha256.get(name, "")) for name, content in sorted(made.files.items()))
    receipt = Receipt(part=part, files=files, rows=made.rows, made_by=made_by, facts=made.facts)
    store.put(f"{RECEIPTS}/{part}.json", receipt.to_json())
    return receipt


def valid_receipts(store: Store, folders: tuple[str, ...] = ("",)) -> dict[str, Receipt]:
    """The receipts whose files are all there with their lengths, by part, in the order of their names.

    `folders` are those below the store in which parts keep files.
    """
    lengths = {
        f"{folder}/{name}".lstrip("/"): length for folder in folders for name, length in store.files(folder).items()
    }
    parts = receipt_names(store)
    read = partial(read_receipt, store)
    if store.local:
        receipts: Iterator[Receipt] = map(read, parts)
    else:
        with ThreadPoolExecutor(16) as threads:
            receipts = threads.map(read, parts)
    return {one.part: one for one in receipts if all(lengths.get(f.path) == f.bytes for f in one.files)}


def receipt_names(store: Store) -> list[str]:
    """Sorted names of the parts that have a receipt of some kind; other files beside receipts are nobody's."""
    return sorted(name.removesuffix(".json") for name in store.files(RECEIPTS) if name.endswith(".json"))


def valid_receipt(store: Store, part: str) -> Receipt | None:
    """A part's receipt, if its files are all there with their lengths; else None.

    Raises:
        UserError: if it is torn.
    """
    with contextlib.suppress(FileNotFoundError):
        receipt = read_receipt(store, part)
        if all(store.length(file.path) == file.bytes for file in receipt.files):
            return receipt
    return None


def read_plan(store: Store) -> Plan | None:
    """A stage's plan, or None where it is not written yet.

    Raises:
        UserError: if it is damaged.
    """
    return read_state(store, PLAN, Plan.from_json)


def refuse_other_plan(store: Store, made_by: str) -> None:
    """Read the plan again before anything is written into a stage's folder.

    Raises:
        MismatchError: if it is of something else, since another command has begun there meanwhile.
    """
    plan = read_plan(store)
    if plan is not None and plan.made_by != made_by:
        raise MismatchError(
            f"{store.display_path(PLAN)}: another command has begun something else here meanwhile; wait for "
            "its end, stop it, "
            "or work under another name"
        )


def read_state(store: Store, path: str, parse: Callable[[bytes, str], StateT]) -> StateT | None:
    """A stored state file, or None where it is not written yet.

    Args:
        store: the folder.
        path: of the file there.
        parse: makes the state of the file's bytes and its name for messages, such as `Plan.from_json`.

    Raises:
        UserError: if it is damaged.
    """
    with contextlib.suppress(FileNotFoundError):
        return _undamaged(store, lambda: parse(store.read(path), store.display_path(path)))
    return None


def put_state(store: Store, path: str, state: StoredState) -> None:
    """Put a state file, unless its bytes are there already."""
    put_unless_there(store, path, state.to_json())


def put_unless_there(store: Store, path: str, data: bytes) -> None:
    """Put a file, unless its bytes are there already."""
    with contextlib.suppress(FileNotFoundError):
        if store.read(path) == data:
            return
    store.put(path, data)


def read_receipt(store: Store, part: str) -> Receipt:
    """A part's receipt, whatever its files; raises FileNotFoundError where there is none.

    Raises:
        UserError: if it is torn, or that of another part.
    """
    path = f"{RECEIPTS}/{part}.json"
    receipt = _undamaged(store, lambda: Receipt.from_json(store.read(path), store.display_path(path)))
    if receipt.part != part:
        raise UserError(f"{store.display_path(path)}: is the receipt of {receipt.part}; delete it and rerun its stage")
    return receipt


def put_json(store: Store, path: str, value: Any) -> None:
    """Put a JSON value in its canonical spelling."""
    store.put(path, canonical_json(value))


def put_table(store: Store, path: str, table: pa.Table) -> None:
    """Put a table as a Parquet file."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    store.put(path, out.getvalue())


def broken_files(store: Store, files: Iterable[StoredFile]) -> Iterator[tuple[str, str]]:
    """Read files again; yield path and fault of each that differs from its receipt."""
    for file in files:
        try:
            data = store.read(file.path)
        except FileNotFoundError:
            yield file.path, "is missing"
            continue
        if len(data) != file.bytes:
            yield file.path, f"has {len(data)} bytes, its receipt says {file.bytes}"
        elif hashlib.sha256(data).hexdigest() != file.sha256:
            yield file.path, "has other bytes than its receipt says"


def read_checked(
    store: Store, file: StoredFile, *, proof: str = "receipt", fix: str = "run `deit-pipeline verify`"
) -> bytes:
    """A file's bytes, proven against its receipt; over a network they are read again before they count as damaged.

    Args:
        store: the stage's folder.
        file: what its receipt, or another `proof`, says of the file.
        proof: what the file is proven against, for messages.
        fix: what to do where it is damaged, for messages.

    Raises:
        UserError: if it is missing or has other bytes.
    """
    for _ in range(store.read_attempts):
        try:
            data = store.read(file.path)
        except FileNotFoundError:
            raise UserError(f"{store.display_path(file.path)}: is missing; {fix}") from None
        if hashlib.sha256(data).hexdigest() == file.sha256:
            return data
    raise UserError(f"{store.display_path(file.path)}: has other bytes than its {proof} says; {fix}")


def _undamaged(store: Store, read: Callable[[], T]) -> T:
    """Read what has no sum; across a network again, before it is blamed."""
    for _ in range(store.read_attempts - 1):
        try:
            return read()
        except IncompleteError:
            raise
        except UserError:
            continue
    return read()
