"""The metrics once more, as TensorBoard reads them.

The event file is written again from all lines each time, so it has neither gaps nor duplicates, and it is written
like any other file, to wherever the workspace is. Rejected: a writer that appends while training, whose files of
killed attempts overlap.
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import UserError

EVENTS_FILE = "tensorboard/events.out.tfevents.0"
_NOT_DRAWN = ("step",)


def refuse_missing_tensorboard() -> None:
    """Raise UserError if the package that writes event files is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "train.tensorboard = true: needs tensorboard; pip install 'deit-pipeline[tensorboard]', or set it to false"
        )


def event_file(lines: Sequence[dict[str, Any]]) -> bytes:
    """An event file with one scalar for each number of each line, at the line's step."""
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for line in lines:
                for name, value in line.items():
                    if name not in _NOT_DRAWN:
                        writer.add_scalar(name, value, line["step"])
        return next(Path(folder).iterdir()).read_bytes()
