"""The interface of a tracker, and which there are; a tracker's library is imported only where it is chosen."""

import importlib.util
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.values import TRACKERS
from stages.storage.store import Store
from stages.trackers.about import About

Line = dict[str, Any]
"""A line of metrics.jsonl: its `step`, and numbers by name."""


class Tracker(Protocol):
    """A run as one tracker keeps it, open for more lines.

    A tracker's module has a class `Run` with this interface, made from (about, config, store), where `store` is of the
    run's folder. It raises whatever its library raises.
    """

    def send(self, lines: Sequence[Line], sent: int) -> None:
        """Let the tracker's run hold these lines, each once, and return when it does.

        Args:
            lines: all lines of the run so far. Later calls have more at the end.
            sent: how many of them are known to have been sent; a killed process may have sent more.
        """

    def close(self, *, done: bool) -> None:
        """End this process's part; `done` if the training is complete."""


def refuse_missing(config: RunFile) -> None:
    """Raise UserError if the library of a chosen tracker is not installed."""
    for name in config.train.all_trackers:
        if _is_installed(name):
            continue
        install = f"needs {name}; pip install 'deit-pipeline[{name}]'"
        if name in config.train.trackers:
            raise UserError(f'train.trackers: "{name}" {install}, or remove it from train.trackers')
        raise UserError(f"train.tensorboard = true: {install}, or set it to false")


def connect(name: str, about: About, config: RunFile, store: Store) -> Tracker:
    """Open a run at a tracker; raises whatever its library raises."""
    assert name in TRACKERS
    tracker: Tracker = import_module(f"stages.trackers.{name}").Run(about, config, store)
    return tracker


def _is_installed(name: str) -> bool:
    """Whether a library is there; a folder of its name, such as W&B's own `wandb/`, is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
