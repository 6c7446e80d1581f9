"""What a command stored, and a command that is killed at a moment."""

import json
import os
import signal
from pathlib import Path

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
