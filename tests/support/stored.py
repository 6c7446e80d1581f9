"""What a command stored, and a command that is killed at a moment."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from schemas.receipts import canonical_json, fingerprint
from tests.support.world import start, stored, wait_until

TIMING = {"views_per_second", "waiting"}


def left(folder: Path) -> dict[str, bytes]:
    """What counts of a stage's folder: all files but hidden halves."""
    return {name: data for name, data in stored(folder).items() if not Path(name).name.startswith(".")}


def lines(workspace: Path | str, name: str = "student") -> list[dict]:
    """A run's metrics without what the clock says."""
    text = Path(workspace, "runs", name, "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in text.splitlines()]


def kill_when(arguments: list[str], seen) -> None:
    process = start(arguments)
    try:
        wait_until(process, seen)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()


def receipts(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder, "receipts").glob("[!.]*.json"))


def edit_state(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a plan or a manifest so that it proves itself as one of version 0.1.0 does: without a sum of its own."""
    fields = json.loads(file.read_text())
    fields.pop("sha256", None)
    edit(fields)
    if "made_by" in fields:
        fields["made_by"] = fingerprint(fields["made_from"])
    file.write_bytes(canonical_json(fields))


def as_of_first_version(workspace: Path | str) -> None:
    """Store everything as version 0.1.0 does: no sums in plans and manifests, which list their parts themselves."""
    for file in [*Path(workspace).rglob("plan.json"), *Path(workspace).rglob("manifest.json")]:
        table = list(file.parent.glob("manifest/*.parquet"))

        def earlier(fields: dict[str, Any], table: list[Path] = table) -> None:
            if table and "parts" in fields:
                fields["parts"] = pq.read_table(table[0]).to_pylist()
            if fields.get("stage") == "train":
                del fields["classes"]

        edit_state(file, earlier)
    for folder in [*Path(workspace).glob("*/*/manifest")]:
        shutil.rmtree(folder)
