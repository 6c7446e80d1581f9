"""A training that is long enough to be stopped, and what is left of it."""

from pathlib import Path

from stages.storage.commit import read_receipt, receipt_names
from stages.storage.store import Store
from stages.train.checkpoint import newest_checkpoint

STOPPED = "stopped; rerun the same command to resume from the newest checkpoint"
KEPT = "stopped; what is done is kept; rerun the same command to resume"
LONG = {"train": {"epochs": 800, "warmup_epochs": 0, "reuse_views": True, "checkpoint_every": 40}}
"""2,400 steps."""


def newest(workspace: Path | str, name: str = "student") -> int:
    """The step of a run's newest checkpoint; 0 = there is none."""
    store = Store(f"{workspace}/runs/{name}")
    made_by = {read_receipt(store, part).made_by for part in receipt_names(store)}
    assert len(made_by) < 2, "checkpoints of several trainings"
    found = newest_checkpoint(store, *made_by, print) if made_by else None
    return found.step if found else 0
