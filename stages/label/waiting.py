"""Waiting for labels that another command makes."""

import sys
import time


class Waiting:
    """Sleeps, longer each time, and reports once what it waits for: `what`."""

    def __init__(self, what: str) -> None:
        self._what, self._seconds = what, 0.25

    def sleep(self) -> None:
        """Sleep, twice as long as the last time, at most ten seconds."""
        if self._seconds == 1.0:
            print(f"waiting for {self._what}; `deit-pipeline label-teacher` makes it", file=sys.stderr, flush=True)
        time.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, 10.0)
