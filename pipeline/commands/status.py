"""Overview: what is stored, how far each stage is, and whether every byte is what its receipt says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pipeline.execution.failures import Failures
from pipeline.execution.lease import live_leases
from pipeline.execution.progress import Progress, duration, rate
from schemas.errors import PipelineError
from schemas.receipts import Receipt, StoredFile
from stages.storage.commit import MANIFEST, PLAN, RECEIPTS, broken_files, read_manifest, read_receipt
from stages.storage.store import Store
from stages.train.metrics import FILE as METRICS

STAGES = {"shard": "shards", "label-teacher": "labels", "train": "runs", "evaluate": "predictions"}
_READERS = 4


def status(workspace: str) -> dict[str, Any]:
    """Every stage's folders with what is done, under way, failed and missing in each, from any machine, at any time."""
    return {
        "workspace": Store(workspace).shown,
        "stages": [
            {"stage": stage, "name": name} | _state(Store(workspace).at(f"{folder}/{name}"))
            for stage, folder in STAGES.items()
            for name in Store(workspace).folders(folder)
        ],
    }


def about_stage(one: dict[str, Any]) -> str:
    """One stage of `status` in words: "12 of 1,000 parts done, 4 running, 984 missing; 2.0 parts/s, 8 min left"."""
    unit = "steps" if "steps" in one else "parts"
    of = f" of {one['wanted']:,}" if "wanted" in one else ""
    words = [f"{one.get(unit, 0):,}{of} {unit} done"]
    words += [f"{len(one[key])} {key}" for key in ("running", "failed") if one.get(key)]
    words += [f"{one['missing']:,} missing"] if one.get("missing") else []
    pace = f"; {rate(one['per_second'], unit)}, {duration(one['seconds_left'])} left" if "per_second" in one else ""
    return ", ".join(words) + pace


def verify(workspace: str) -> dict[str, Any]:
    """Read everything that is stored again and compare it with its receipt.

    Raises:
        PipelineError: if the workspace holds nothing.
    """
    stores = [
        Store(workspace).at(f"{folder}/{name}")
        for folder in STAGES.values()
        for name in Store(workspace).folders(folder)
    ]
    if not stores:
        raise PipelineError(f"workspace {Store(workspace).shown}: holds nothing; run `deit-pipeline shard` first")
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
    return [{"path": store.name(path), "what": what} for path, what in broken_files(store, receipt)]


def _adopted(store: Store) -> Iterator[tuple[Store, Receipt]]:
    """The tars that a split uses where they lie, which no receipt holds."""
    with suppress(PipelineError):  # a torn manifest is a problem already
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
        except PipelineError as error:
            problems.append({"path": store.name(path), "what": str(error)})
            continue
        found[receipt.part] = receipt
    yield from found.values()
    try:
        manifest = read_manifest(store) or {"parts": [], "made_by": ""}
    except PipelineError as error:
        problems.append({"path": store.name(MANIFEST), "what": str(error)})
        return
    for part in manifest["parts"]:
        files = tuple(StoredFile(**file) for file in part["files"])
        mine = found.get(part["part"])
        if mine is None:
            yield Receipt(part=part["part"], files=files, rows=part["rows"], made_by=manifest["made_by"], facts={})
            path = f"{RECEIPTS}/{part['part']}.json"
            if manifest["stage"] != "train" and not store.exists(path):  # a model has no receipt but the manifest
                problems.append({"path": store.name(path), "what": "is missing"})
        elif mine.files != files:
            problems.append({"path": store.name(MANIFEST), "what": f"{part['part']} differs from its receipt"})


def _state(store: Store) -> dict[str, Any]:
    """How far a stage's folder is, from its plan, receipts, failures and leases, or from its manifest where whole."""
    manifest, plan = read_manifest(store), read_manifest(store, PLAN)
    leases = live_leases(store)
    if manifest and not leases and _covers(manifest, plan):
        return _whole(manifest)
    receipts = {name.removesuffix(".json") for name in store.files(RECEIPTS) if name.endswith(".json")}
    running = sorted({part for lease in leases for part in lease["running"]} - receipts)
    failed = sorted(Failures(store).read().keys() - receipts)
    training = store.exists(METRICS) or (not running and bool(leases) and all(one["training"] for one in leases))
    done = _steps(receipts) if training else len(receipts)
    wanted = int((plan or {}).get("wanted", 0)) or done
    state: dict[str, Any] = {"state": "running" if leases else "begun" if plan or receipts else "empty"}
    if training:
        done = max([done, *(lease["at"] for lease in leases)])
        state |= {"steps": done, "wanted": wanted, "missing": max(wanted - done, 0)}
    else:
        missing = max(wanted - done - len(running) - len(failed), 0)
        state |= {"parts": done, "wanted": wanted, "running": running, "failed": failed, "missing": missing}
    return state | _pace(leases, wanted - done - len(failed))


def _covers(manifest: dict[str, Any], plan: dict[str, Any] | None) -> bool:
    """Whether a manifest is of all that is wanted by now: more views or steps may have been asked for since."""
    return bool(manifest.get("steps", len(manifest["parts"])) >= (plan or {}).get("wanted", 0))


def _whole(manifest: dict[str, Any]) -> dict[str, Any]:
    if "steps" in manifest:
        return {"state": "done", "steps": manifest["steps"], "loss": manifest["loss"]}
    return {"state": "done", "parts": len(manifest["parts"])}


def _steps(receipts: set[str]) -> int:
    """The step of the newest checkpoint."""
    return int(max(receipts, default="step-0").rpartition("-")[2])


def _pace(leases: list[dict[str, Any]], left: int) -> dict[str, Any]:
    """Units a second of all commands at work, and the seconds left at that."""
    spans = [(lease["new"], lease["refreshed"] - lease["started"]) for lease in leases]
    rate = sum(new / seconds for new, seconds in spans if new and seconds > 0)
    return {"per_second": rate, "seconds_left": left / rate} if rate else {}
