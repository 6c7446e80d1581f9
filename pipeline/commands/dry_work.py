"""What is left of a stage's folder, as `--dry-run` tells it: parts or steps, bytes, seconds."""

from dataclasses import dataclass
from typing import Any

from pipeline.execution.progress import duration
from schemas.errors import UserError
from stages.storage.hours import read_hours
from stages.storage.space import free_bytes
from stages.storage.store import Store


@dataclass(frozen=True)
class Work:
    """What is left of a stage's folder: parts (or steps) wanted and done, bytes that the rest will take, seconds.

    `seconds` are None where no hours of the folder are stored yet, `bytes` where the source does not tell them.
    """

    folder: str
    unit: str
    wanted: int
    done: int
    bytes: int | None
    seconds: float | None

    @property
    def left(self) -> int:
        """Units that are not done."""
        return max(0, self.wanted - self.done)

    def to_json(self) -> dict[str, Any]:
        """All fields, and what is left."""
        return vars(self) | {"left": self.left}


def work_of(store: Store, unit: str, wanted: int, done: int, bytes_: int | None) -> Work:
    """The work on a folder, with the seconds that it takes at the pace of its stored hours."""
    return Work(str(store), unit, wanted, done, bytes_, _seconds(store, unit, wanted - done))


def _seconds(store: Store, unit: str, left: int) -> float | None:
    """Seconds that the rest takes at the pace of the hours that are stored of this folder, on as many devices."""
    lines = read_hours(store)
    if unit == "steps":
        units = max((int(str(one.get("part", ""))[5:] or 0) for one in lines), default=0)
        spent = sum(float(one["seconds"]) for one in lines)
    else:
        units = len(lines)
        spent = sum(float(one["seconds"]) / int(one["lanes"]) for one in lines)
    return max(0, left) * spent / units if units else None


def line_of(work: Work) -> str:
    """What is left of a folder, for people."""
    if not work.left:
        return f"{work.folder}: all {work.wanted:,} {work.unit} are done"
    size = "bytes not known" if work.bytes is None else f"about {work.bytes:,} bytes"
    pace = "how long: `deit-pipeline estimate` measures it" if work.seconds is None else f"{duration(work.seconds)}"
    return f"{work.folder}: {work.left:,} of {work.wanted:,} {work.unit} to make, {size}; {pace}"


def refuse_full_disk(workspace: str, wanted: int) -> None:
    """Check that the workspace's disk has space for so many bytes.

    Raises:
        UserError: if it has not.
    """
    free = free_bytes(workspace)
    if free is not None and wanted > free:
        raise UserError(
            f"workspace {workspace}: {wanted:,} bytes are to be written, {free:,} are free; make room, or name a "
            "workspace on another disk"
        )
