"""Whether every stored byte is what its receipt says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pipeline.commands.status import STAGES
from pipeline.execution.progress import Progress
from schemas.errors import UserError
from schemas.receipts import Receipt, StoredFile
from stages.storage.commit import MANIFEST, RECEIPTS, broken_files, read_manifest, read_receipt
from stages.storage.store import Store

_READERS = 4


def verify(workspace: str) -> dict[str, Any]:
    """Read everything that is stored again and compare it with its receipt.

    Raises:
        UserError: if the workspace holds nothing.
    """
    stores = [
        Store(workspace).child(f"{folder}/{name}")
        for folder in STAGES.values()
        for name in Store(workspace).folders(folder)
    ]
    if not stores:
        raise UserError(f"workspace {Store(workspace).display_uri}: holds nothing; run `deit-pipeline shard` first")
    problems: list[dict[str, str]] = []
    checked = 0
    for store in stores:
        receipts = [(store, receipt) for receipt in _receipts(store, problems)] + list(_adopted(store))
        with (
            Progress(f"verify {store}", total=len(receipts), unit="parts") as progress,
            ThreadPoolExecutor(_READERS) as threads,
        ):
            for (_, receipt), faults in zip(receipts, threads.map(lambda one: _faults(*one), receipts), strict=True):
                problems += faults
                checked += len(receipt.files)
                progress.advance()
    return {"ok": not problems, "checked": checked, "problems": problems}


def _faults(store: Store, receipt: Receipt) -> list[dict[str, str]]:
    return [{"path": store.display_path(path), "what": what} for path, what in broken_files(store, receipt)]


def _adopted(store: Store) -> Iterator[tuple[Store, Receipt]]:
    """The tars that a split uses where they lie, which no receipt holds."""
    with suppress(UserError):  # a torn manifest is a problem already
        adopted = (read_manifest(store) or {}).get("adopted", {"tars": []})
        for tar in adopted["tars"]:
            receipt = Receipt(part=tar["path"], files=(StoredFile(**tar),), rows=0, made_by="", facts={})
            yield Store(adopted["root"]), receipt


def _receipts(store: Store, problems: list[dict[str, str]]) -> Iterator[Receipt]:
    """All receipts of a folder, and the manifest's parts; a torn receipt, or one that is missing, is a problem."""
    found: dict[str, Receipt] = {}
    for name in sorted(store.files(RECEIPTS)):
        path = f"{RECEIPTS}/{name}"
        try:
            receipt = read_receipt(store, name.removesuffix(".json"))
        except UserError as error:
            problems.append({"path": store.display_path(path), "what": str(error)})
            continue
        found[receipt.part] = receipt
    yield from found.values()
    try:
        manifest = read_manifest(store) or {"parts": [], "made_by": ""}
    except UserError as error:
        problems.append({"path": store.display_path(MANIFEST), "what": str(error)})
        return
    for part in manifest["parts"]:
        files = tuple(StoredFile(**file) for file in part["files"])
        mine = found.get(part["part"])
        if mine is None:
            yield Receipt(part=part["part"], files=files, rows=part["rows"], made_by=manifest["made_by"], facts={})
            path = f"{RECEIPTS}/{part['part']}.json"
            if manifest["stage"] != "train" and not store.exists(path):  # a model has no receipt but the manifest
                problems.append({"path": store.display_path(path), "what": "is missing"})
        elif mine.files != files:
            problems.append({"path": store.display_path(MANIFEST), "what": f"{part['part']} differs from its receipt"})
