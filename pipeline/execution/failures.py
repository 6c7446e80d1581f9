"""Quarantine: records of parts that failed in all their attempts, stored beside the receipts.

A record is written when a part is quarantined, so that the next command skips it and people can read the traceback
from any machine; it is deleted when the part is made later. It is advice, never proof: a receipt outweighs it.
"""

import platform
import time
from dataclasses import dataclass

from schemas.errors import IncompleteError, UserError
from schemas.lease import FailureRecord
from schemas.secrets import hide_secrets
from stages.storage.commit import read_state
from stages.storage.store import Store

FAILURES = "failures"


@dataclass(frozen=True)
class PartFailure:
    """An error of ours, or of the machine, while a part was made: its last line, and its traceback."""

    cause: str
    traceback: str
    host: str = platform.node()


class Failures:
    """The records of a stage's folder."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __str__(self) -> str:
        return self._store.display_path(FAILURES)

    def read(self) -> dict[str, str]:
        """Part → why it failed."""
        found = {}
        for name in sorted(name for name in self._store.files(FAILURES) if name.endswith(".json")):
            path = f"{FAILURES}/{name}"
            try:
                record = read_state(self._store, path, FailureRecord.from_json)
            except IncompleteError:
                raise
            except UserError as error:
                found[name.removesuffix(".json")] = str(error)
                continue
            if record is not None:  # else another driver has made the part meanwhile
                found[record.part] = record.cause
        return found

    def put(self, part: str, fault: PartFailure, attempts: int) -> None:
        """Record that a part failed in all its attempts."""
        record = FailureRecord(
            part=part,
            cause=hide_secrets(fault.cause),
            traceback=tuple(hide_secrets(fault.traceback).splitlines()),
            attempts=attempts,
            host=fault.host,
            time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        self._store.put(f"{FAILURES}/{part}.json", record.to_json())

    def remove(self, part: str) -> None:
        """Forget a part that is done after all."""
        self._store.delete(f"{FAILURES}/{part}.json")
