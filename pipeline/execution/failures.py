"""Quarantine: what is known of parts that failed in all their attempts, kept beside the receipts.

A record is put when a part is given up, so that the next command leaves it aside and people can read the traceback
from any machine; it is deleted when the part is made after all. It is advice, never proof: a receipt outweighs it.
"""

import platform
import time
from dataclasses import dataclass

from schemas.errors import UserError
from schemas.receipts import canonical_json, read_json
from schemas.secrets import hide_secrets
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
        for name in sorted(self._store.files(FAILURES)):
            path = f"{FAILURES}/{name}"
            try:
                found[name.removesuffix(".json")] = str(
                    read_json(self._store.read(path), self._store.display_path(path)).get("cause", "")
                )
            except FileNotFoundError:
                continue  # another driver has made the part meanwhile
            except UserError:
                found[name.removesuffix(".json")] = "its record is torn"
        return found

    def put(self, part: str, fault: PartFailure, attempts: int) -> None:
        """Record that a part failed in all its attempts."""
        record = {
            "part": part,
            "cause": hide_secrets(fault.cause),
            "traceback": hide_secrets(fault.traceback).splitlines(),
            "attempts": attempts,
            "host": fault.host,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self._store.put(f"{FAILURES}/{part}.json", canonical_json(record))

    def remove(self, part: str) -> None:
        """Forget a part that is done after all."""
        self._store.delete(f"{FAILURES}/{part}.json")
