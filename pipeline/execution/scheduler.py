"""The bounded loop: submit missing parts, collect outcomes, retry parts that may be retried.

It knows neither Ray nor the stages: executors make parts, in this process (`InlineExecutor`, `ThreadExecutor`) or a
cluster's (`pipeline.execution.ray_executor.RayExecutor`). An error while a part was made costs it one of its attempts,
and so does the death of the process that was at work on it, since the part may be what killed it; a lost node, or
waiting in a dead process's queue, costs nothing. A part waits for its next attempt without holding up others.
"""

import heapq
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from pipeline.execution.failures import PartFailure
from pipeline.execution.shutdown import GracefulShutdown
from pipeline.execution.worker import Spec, Worker
from schemas.errors import IncompleteError, UserError, merge_errors
from schemas.receipts import Receipt
from schemas.secrets import hide_secrets

_POLL_SECONDS = 0.5
_LONGEST_WAIT = 30.0
_MOST_LOSSES = 30
"""Nodes that may be lost under one part, before it is no accident."""


@dataclass(frozen=True)
class WorkerLost:
    """Whoever held a part is gone; `own` if its process died at work on this very part, while its node lives."""

    cause: str
    own: bool


Outcome = Receipt | UserError | PartFailure | WorkerLost


class Executor(Protocol):
    """Who makes parts."""

    def free(self) -> bool:
        """Whether another part may be handed out."""

    def submit(self, spec: Spec) -> None:
        """Begin a part."""

    def poll(self, seconds: float) -> list[tuple[Spec, Outcome]]:
        """Outcomes of submitted parts, waiting for any of them up to a timeout."""

    def in_flight(self) -> list[str]:
        """The submitted parts without an outcome."""

    def cancel_queued(self) -> None:
        """Forget the parts that are handed out and that nobody works on yet."""


class InlineExecutor:
    """Makes one part after the other, here."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._spec: Spec | None = None

    def free(self) -> bool:
        """See `Executor`."""
        return self._spec is None

    def submit(self, spec: Spec) -> None:
        """See `Executor`."""
        self._spec = spec

    def poll(self, seconds: float) -> list[tuple[Spec, Outcome]]:
        """See `Executor`."""
        if self._spec is None:
            time.sleep(seconds)
            return []
        spec, outcome = self._spec, self._worker.run(self._spec)
        self._spec = None
        return [(spec, outcome)]

    def in_flight(self) -> list[str]:
        """See `Executor`."""
        return [self._spec.name] if self._spec else []

    def cancel_queued(self) -> None:
        """See `Executor`; there are none."""


class ThreadExecutor:
    """Makes a few parts at a time in threads of this process: while one waits for a device, the next one is read."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._begun: dict[str, Spec] = {}
        self._made: SimpleQueue[tuple[Spec, Outcome]] = SimpleQueue()

    def free(self) -> bool:
        """See `Executor`."""
        return len(self._begun) < self._worker.job.lanes

    def submit(self, spec: Spec) -> None:
        """See `Executor`."""
        self._begun[spec.name] = spec
        threading.Thread(target=self._make, args=(spec,), daemon=True).start()  # a command that ends waits for none

    def poll(self, seconds: float) -> list[tuple[Spec, Outcome]]:
        """See `Executor`."""
        try:
            spec, outcome = self._made.get(timeout=seconds)
        except Empty:
            return []
        del self._begun[spec.name]
        return [(spec, outcome)]

    def in_flight(self) -> list[str]:
        """See `Executor`."""
        return list(self._begun)

    def cancel_queued(self) -> None:
        """See `Executor`; there are none."""

    def _make(self, spec: Spec) -> None:
        self._made.put((spec, self._worker.run(spec)))


class Scheduler:
    """One stage's parts on their way.

    Args:
        executor: makes them.
        specs: what is to be made, in order.
        attempts: tries of a part before it is given up.
        done: called with each receipt.
        failed: called with the name and the last fault of each part that is given up.
        watch: called with the parts under way, whenever they change.
    """

    def __init__(
        self,
        executor: Executor,
        specs: Sequence[Spec],
        *,
        attempts: int,
        done: Callable[[Receipt], None],
        failed: Callable[[str, PartFailure], None],
        watch: Callable[[list[str]], None] = lambda names: None,
    ) -> None:
        self._executor, self._attempts, self._done, self._failed, self._watch = executor, attempts, done, failed, watch
        self._waiting = deque(specs)
        self._later: list[tuple[float, int, Spec]] = []
        self._tries: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._refused: list[UserError] = []
        self._unmade: dict[str, str] = {}

    def run(self, stop: GracefulShutdown) -> None:
        """Run until nothing is left, or a shutdown is requested and nothing is in flight.

        Raises:
            UserError: a user's error of a part; parts under way are finished first, and what they found is added.
            IncompleteError: if the user stopped the command, or the store or the cluster failed in all attempts.
        """
        while True:
            if stop.requested or self._refused:
                self._executor.cancel_queued()
                self._waiting.clear()
                self._later.clear()
            self._hand_out()
            held = self._executor.in_flight()
            self._watch(held)
            if not (held or self._waiting or self._later):
                break
            for spec, outcome in self._executor.poll(self._patience()):
                self._take(spec, outcome)
        if self._refused:
            raise merge_errors(self._refused)
        if stop.requested:
            raise KeyboardInterrupt
        if self._unmade:
            part, cause = next(iter(self._unmade.items()))
            raise IncompleteError(
                f"{len(self._unmade)} parts could not be made for want of store or cluster ({part}: {cause}); "
                "rerun the same command to resume"
            )

    def _hand_out(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._waiting.append(heapq.heappop(self._later)[2])
        while self._waiting and self._executor.free():
            self._executor.submit(self._waiting.popleft())

    def _patience(self) -> float:
        due = self._later[0][0] - time.monotonic() if self._later else _POLL_SECONDS
        return min(max(due, 0.0), _POLL_SECONDS)

    def _take(self, spec: Spec, outcome: Outcome) -> None:
        if isinstance(outcome, Receipt):
            self._done(outcome)
        elif isinstance(outcome, WorkerLost) and not outcome.own:
            self._losses[spec.name] += 1
            if self._losses[spec.name] > _MOST_LOSSES:
                self._unmade[spec.name] = outcome.cause
            else:
                self._again(spec, outcome.cause, wait=0.0)
        elif isinstance(outcome, IncompleteError | PartFailure | WorkerLost):
            self._charge(spec, outcome)
        else:
            self._refused.append(outcome)

    def _charge(self, spec: Spec, outcome: IncompleteError | PartFailure | WorkerLost) -> None:
        """Take one attempt from a part's budget, and give it up when there is none left."""
        self._tries[spec.name] += 1
        cause = hide_secrets(str(outcome) if isinstance(outcome, IncompleteError) else outcome.cause)
        if self._tries[spec.name] < self._attempts:
            self._again(spec, cause, wait=min(2.0 ** (self._tries[spec.name] - 1), _LONGEST_WAIT))
        elif isinstance(outcome, IncompleteError):
            self._unmade[spec.name] = cause
        else:
            self._failed(spec.name, outcome if isinstance(outcome, PartFailure) else PartFailure(cause, cause))

    def _again(self, spec: Spec, cause: str, wait: float) -> None:
        if not self._refused:
            print(f"warning: {spec.name} is tried again ({cause})", file=sys.stderr, flush=True)
            heapq.heappush(self._later, (time.monotonic() + wait, id(spec), spec))
