"""Leases and failure records: running commands of a stage's folder, and parts that cannot be made."""

from typing import ClassVar

from schemas.state import Count, StoredState


class LeaseRecord(StoredState):
    """A command that runs on a stage's folder, as of its last report.

    Attributes:
        made_by: fingerprint of what it makes parts from.
        host: name of its machine.
        pid: of its process.
        boot: identity of its machine's boot; "" = not known.
        namespace: identity of its namespace of process ids; "" = not known.
        born: when its process began, in ticks since the boot; 0 = not known.
        started: when it began, by its clock, in seconds since 1970.
        refreshed: time of this report, by its clock.
        new: parts, or steps, that it has done.
        running: parts under way.
        training: whether it is a training.
        at: step of a training.
    """

    FIX: ClassVar[str] = "delete it"
    made_by: str
    host: str
    pid: Count
    boot: str = ""
    namespace: str = ""
    born: Count = 0
    started: float
    refreshed: float
    new: Count
    running: tuple[str, ...]
    training: bool
    at: Count


class FailureRecord(StoredState):
    """A part that failed in all its attempts.

    Attributes:
        part: its name.
        cause: the last error in one line.
        traceback: its lines.
        attempts: how many there were.
        host: name of the machine of the last one.
        time: UTC, ISO 8601.
    """

    FIX: ClassVar[str] = "delete it"
    part: str
    cause: str
    traceback: tuple[str, ...]
    attempts: Count
    host: str
    time: str
