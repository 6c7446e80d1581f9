"""What is stored, and how far each stage is."""

from typing import Any

from pipeline.execution.failures import Failures
from pipeline.execution.lease import live_leases
from pipeline.execution.progress import duration, rate
from schemas.errors import IncompleteError, UserError
from schemas.lease import LeaseRecord
from schemas.manifests import MANIFESTS, Manifest, TrainManifest
from schemas.plan import Plan
from stages.storage.commit import read_plan, receipt_names
from stages.storage.hours import device_hours
from stages.storage.manifest import read_manifest
from stages.storage.run_files import METRICS_FILE as METRICS
from stages.storage.store import Store

STAGES = {"shard": "shards", "label-teacher": "labels", "train": "runs", "evaluate": "predictions"}


def status(workspace: str) -> dict[str, Any]:
    """Every stage's folders with what is done, under way, failed and missing in each, from any machine, at any time."""
    return {
        "workspace": Store(workspace).display_uri,
        "stages": [
            {"stage": stage, "name": name} | _state(store, stage) | {"device_hours": device_hours(store)}
            for stage, folder in STAGES.items()
            for name in Store(workspace).folders(folder)
            for store in [Store(workspace).child(f"{folder}/{name}")]
        ],
    }


def about_stage(one: dict[str, Any]) -> str:
    """One stage of `status` in words: "12 of 1,000 parts done, 4 running, 984 missing; 2.0 parts/s, 8 min left"."""
    if "problem" in one:
        return str(one["problem"])
    unit = "steps" if "steps" in one else "parts"
    of = f" of {one['wanted']:,}" if "wanted" in one else ""
    words = [f"{one.get(unit, 0):,}{of} {unit} done"]
    words += [f"{len(one[key])} {key}" for key in ("running", "failed") if one.get(key)]
    words += [f"{one['missing']:,} missing"] if one.get("missing") else []
    pace = f"; {rate(one['per_second'], unit)}, {duration(one['seconds_left'])} left" if "per_second" in one else ""
    hours = [f"{duration(3600 * spent)} of {device}" for device, spent in one.get("device_hours", {}).items()]
    return ", ".join(words) + pace + (f"; took {', '.join(hours)}" if hours else "")


def _state(store: Store, stage: str) -> dict[str, Any]:
    """How far a stage's folder is; where its plan or manifest is damaged, what is wrong and how it is fixed."""
    try:
        return _progress(store, read_manifest(store, MANIFESTS[stage]), read_plan(store))
    except IncompleteError:  # the store is away, and with it all stages
        raise
    except UserError as error:
        return {"state": "damaged", "problem": str(error)}


def _progress(store: Store, manifest: Manifest | None, plan: Plan | None) -> dict[str, Any]:
    """Progress of a stage's folder, from its plan, receipts, failures and leases, or its manifest if complete."""
    leases = live_leases(store)
    if manifest and not leases and _covers(manifest, plan):
        return _whole(manifest)
    receipts = set(receipt_names(store))
    running = sorted({part for lease in leases for part in lease.running} - receipts)
    failed = sorted(Failures(store).read().keys() - receipts)
    training = store.exists(METRICS) or (not running and bool(leases) and all(one.training for one in leases))
    done = newest_step(receipts) if training else len(receipts)
    wanted = (plan.wanted if plan else 0) or done
    state: dict[str, Any] = {"state": "running" if leases else "begun" if plan or receipts else "empty"}
    if training:
        done = max([done, *(lease.at for lease in leases)])
        state |= {"steps": done, "wanted": wanted, "missing": max(wanted - done, 0)}
    else:
        missing = max(wanted - done - len(running) - len(failed), 0)
        state |= {"parts": done, "wanted": wanted, "running": running, "failed": failed, "missing": missing}
    return state | _pace(leases, wanted - done - len(failed))


def _covers(manifest: Manifest, plan: Plan | None) -> bool:
    """Whether a manifest covers everything wanted: the run file may have more views or steps since."""
    return manifest.wanted >= (plan.wanted if plan else 0)


def _whole(manifest: Manifest) -> dict[str, Any]:
    if isinstance(manifest, TrainManifest):
        return {"state": "done", "steps": manifest.steps, "loss": manifest.loss}
    return {"state": "done", "parts": manifest.wanted}


def newest_step(receipts: set[str]) -> int:
    """The step of the newest checkpoint."""
    return int(max(receipts, default="step-0").rpartition("-")[2])


def _pace(leases: list[LeaseRecord], left: int) -> dict[str, Any]:
    """Units a second of all commands at work, and the seconds left at that."""
    spans = [(lease.new, lease.refreshed - lease.started) for lease in leases]
    rate = sum(new / seconds for new, seconds in spans if new and seconds > 0)
    return {"per_second": rate, "seconds_left": left / rate} if rate else {}
