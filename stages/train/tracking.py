"""What a training tells its trackers of itself, by rank 0 or by a command that finds the training complete."""

from collections.abc import Sequence
from typing import Any

from schemas.config import RunFile
from schemas.receipts import fingerprint
from stages.storage.store import Store
from stages.trackers.about import about_run
from stages.trackers.sender import Senders
from stages.train.plan import Plan


def open_trackers(config: RunFile, plan: Plan, store: Store, *, rank: int = 0) -> Senders:
    """The run's trackers; none on other ranks than 0.

    Args:
        config: the run file.
        plan: of the training.
        store: of the run's folder.
        rank: of this process.
    """
    identity = {
        "train_split": plan.split.content,
        "label_set": config.labels.name if plan.labels else "",
        "label_set_made_by": plan.labels.made_by if plan.labels else "",
    }
    names = () if rank else config.train.all_trackers
    return Senders(names, config, store, lambda: about_run(config, store, fingerprint(plan.made_from), identity))


def send_the_rest(config: RunFile, plan: Plan, store: Store, lines: Sequence[dict[str, Any]]) -> None:
    """Send what a finished run's trackers do not have."""
    trackers = open_trackers(config, plan, store)
    trackers.offer(lines)
    trackers.close(done=True)
