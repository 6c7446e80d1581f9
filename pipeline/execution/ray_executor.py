"""Parts made by actors on Ray.

Workers are actors, for sharding and labelling alike, because a teacher is loaded once a process and one
mechanism is enough. They are never restarted by Ray; a lost one is replaced, and
`pipeline.execution.scheduler` submits its parts again. Parts go to workers that have started only, so
that a worker for which the cluster has no resources blocks nothing. Only receipts and faults cross the object store.
"""

import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

from pipeline.execution.failures import PartFailure
from pipeline.execution.ray_compat import died_alone, failed_to_start
from pipeline.execution.ray_session import Resources, check_fits
from pipeline.execution.scheduler import Outcome, WorkerLost
from pipeline.execution.worker import Spec, Worker
from schemas.errors import IncompleteError, UserError, last_line
from schemas.receipts import Receipt
from stages.storage.commit import valid_receipt

_NO_WORKER_SECONDS = 60.0
_MOST_START_LOSSES = 8
"""Processes that may die at their start for each worker wanted, one after the other, before it is no accident."""
_LONGEST_PAUSE = 30.0


class RayExecutor:
    """Workers on a Ray cluster: those that start, and those that have, each with the parts it holds in order.

    Args:
        ray: the module, in a session.
        worker: what each of them is.
        resources: how many workers, and what each needs.
        parts: how many there are to make.
    """

    def __init__(self, ray: Any, worker: Worker, resources: Resources, parts: int) -> None:
        check_fits(ray, resources)
        self._ray, self._worker, self._resources = ray, worker, resources
        self._lanes = worker.job.lanes
        self._actor = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=0, max_concurrency=self._lanes
        )(Worker)
        self._starting: dict[Any, Any] = {}
        self._held: dict[Any, deque[Any]] = {}
        self._begun: dict[Any, tuple[Spec, Any]] = {}
        self._again_at: list[float] = []
        self._start_losses = 0
        self._warn_at = time.monotonic() + _NO_WORKER_SECONDS
        self._count = min(resources.count or int(ray.cluster_resources()["CPU"] // resources.cpus), parts)
        for _ in range(self._count):
            self._start()

    def free(self) -> bool:
        """See `Executor`."""
        return any(len(held) <= self._lanes for held in self._held.values())  # those it works on, and one that waits

    def submit(self, spec: Spec) -> None:
        """See `Executor`."""
        actor = min(self._held, key=lambda one: len(self._held[one]))
        reference = actor.run.remote(spec)
        self._held[actor].append(reference)
        self._begun[reference] = spec, actor

    def in_flight(self) -> list[str]:
        """See `Executor`."""
        return [spec.name for spec, _ in self._begun.values()]

    def cancel_queued(self) -> None:
        """See `Executor`."""
        for held in self._held.values():
            while len(held) > self._lanes:
                del self._begun[held.pop()]

    def poll(self, seconds: float) -> list[tuple[Spec, Outcome]]:
        """See `Executor`.

        Raises:
            UserError: if a worker refuses to work, and none works.
            IncompleteError: if workers die at their start again and again, and none works.
        """
        self._start_again()
        self._warn_without_workers()
        pending = [*self._begun, *self._starting]
        if not pending:  # of an empty list Ray tells at once
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=seconds)
        if ready:  # and whatever else is, so that a dead worker's parts are told of in their order
            ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        for reference in ready:
            if reference in self._starting:
                self._started(reference)
        return [self._outcome(reference) for reference in ready if reference in self._begun]

    def close(self) -> None:
        """Give the resources back: actors keep them for as long as anything refers to them."""
        for actor in [*self._held, *self._starting.values()]:
            self._ray.kill(actor)

    def _start(self) -> None:
        worker = self._worker
        actor = self._actor.remote(worker.job, worker.lease_path, worker.folder, worker.sockets)
        self._starting[actor.check_storage.remote()] = actor

    def _start_again(self) -> None:
        now = time.monotonic()
        due = [when for when in self._again_at if when <= now]
        self._again_at = [when for when in self._again_at if when > now]
        for _ in due:
            self._start()

    def _started(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            error = self._ray.get(reference)
        except self._ray.exceptions.RayError as lost:
            if not failed_to_start(self._ray, lost):
                self._lost_at_start(last_line(lost))
                return
            error = UserError(f"no worker can start: {last_line(lost)}")
        if error:
            self._ray.kill(actor)
            self._do_without(error)
        else:
            self._start_losses = 0
            self._held[actor] = deque()

    def _lost_at_start(self, cause: str) -> None:
        """Start another in place of a process that died before it could work, later each time, and not for ever."""
        self._start_losses += 1
        rounds = self._start_losses // self._count  # a lost node takes many at once
        if rounds >= _MOST_START_LOSSES:
            times = f"{self._start_losses} processes, one after the other, died at their start ({cause})"
            self._do_without(IncompleteError(f"no worker can start: {times}; rerun the same command to resume"))
            return
        pause = min(2.0**rounds, _LONGEST_PAUSE)
        print(f"warning: a worker died at its start ({cause}); another in {pause:g} s", file=sys.stderr, flush=True)
        self._again_at.append(time.monotonic() + pause)

    def _do_without(self, error: UserError) -> None:
        """Go on with the workers there are, since parts are under way; without any, the error stands."""
        if not self._held:
            raise error
        print(f"warning: {error}; going on with {len(self._held)} workers", file=sys.stderr, flush=True)

    def _outcome(self, reference: Any) -> tuple[Spec, Outcome]:
        spec, actor = self._begun.pop(reference)
        held = self._held.get(actor, deque())  # none: the actor is known to be lost
        worked_on = reference in list(held)[: self._lanes]
        if reference in held:
            held.remove(reference)
        try:
            return spec, self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # not of the part's making, which comes as a value
            return spec, PartFailure(last_line(error), str(error))
        except self._ray.exceptions.RayError as error:
            if self._held.pop(actor, None) is not None:
                self._ray.kill(actor)  # it may only be out of reach
                self._start()
            done = self._committed(spec)  # and lost only the message about it
            return spec, done or WorkerLost(last_line(error), own=worked_on and died_alone(self._ray, error))

    def _committed(self, spec: Spec) -> Receipt | None:
        """The receipt of a part whose worker is lost, if the worker had written it before."""
        stage_dir = self._worker.job.stage_dir
        with suppress(UserError):
            receipt = valid_receipt(stage_dir.store, spec.name)
            return receipt if receipt and receipt.made_by == stage_dir.made_by else None
        return None

    def _warn_without_workers(self) -> None:
        now = time.monotonic()
        if self._held:
            self._warn_at = now + _NO_WORKER_SECONDS
        elif now > self._warn_at:
            self._warn_at = now + 10 * _NO_WORKER_SECONDS
            has = self._ray.cluster_resources()
            print(
                f"warning: no worker could be started for {_NO_WORKER_SECONDS:g} s; one needs {self._resources.cpus} "
                "CPU "
                f"and {self._resources.gpus} GPU, the cluster has {has.get('CPU', 0):g} and {has.get('GPU', 0):g}; "
                "waiting",
                file=sys.stderr,
                flush=True,
            )
