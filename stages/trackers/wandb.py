"""Weights & Biases: a line is a row of the run's history, whose number is the line's place in metrics.jsonl.

Online, the server says how many rows a resumed run has, so none is missing or doubled. Offline, a file can only be
appended to: a process that is killed after it wrote rows, and before it wrote down that it did, writes these again,
under the same numbers.
"""

from collections.abc import Sequence

import wandb

from schemas.config import RunFile
from stages.storage.store import Store
from stages.trackers.about import About
from stages.trackers.tracker import Line


class Run:
    """The run at W&B; see `stages.trackers.tracker.Tracker`."""

    def __init__(self, about: About, config: RunFile, store: Store) -> None:
        tracking = config.tracking
        folder = store.local_path("")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.wandb_entity or None,
            id=about.id,
            name=about.name,
            resume="allow",
            reinit="create_new",
            mode="offline" if tracking.offline else None,
            dir=folder,
            config={**about.config, "identity": about.identity},
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, login_timeout=1),
        )
        self._run.define_metric("*", step_metric="step")

    def send(self, lines: Sequence[Line], sent: int) -> None:
        """Append the rows that the run has not."""
        first = sent if self._run.offline else self._run.step
        for row in range(first, len(lines)):
            self._run.log(lines[row], step=row, commit=True)

    def close(self, *, done: bool) -> None:
        """Wait for the upload, and end the run."""
        self._run.finish()
