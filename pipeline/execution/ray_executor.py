"""A stage's missing parts, made by this process or by actors on Ray, and what becomes of those that cannot be made.

Storage is the truth: what Ray forgets, the next command finds again. Workers are actors, for sharding and labelling
alike, because a teacher is loaded once a process and one mechanism is enough. They are never restarted by Ray; a lost
one is replaced, and `pipeline.execution.scheduler` hands its parts out again. Parts go to workers that have started
only, so that a seat the cluster cannot give holds nothing up. Only receipts and faults cross the object store.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pipeline.execution.failures import Failures, Fault
from pipeline.execution.lease import Lease
from pipeline.execution.progress import Progress
from pipeline.execution.ray_session import INLINE, Seats, check_fits, ray_session
from pipeline.execution.scheduler import InThisProcess, InThreads, Loop, Lost, Outcome
from pipeline.execution.shutdown import Stop
from pipeline.execution.stage_dir import Job, Spec, Worker, left_to_do
from schemas.config import Cluster
from schemas.errors import PipelineError, Unfinished
from schemas.receipts import Receipt
from stages.storage.commit import valid_receipt, valid_receipts

_QUOTED = 3
_NO_WORKER_SECONDS = 60.0
_MOST_START_LOSSES = 8
"""Processes that may die at their start for each worker wanted, one after the other, before it is no accident."""
_LONGEST_PAUSE = 30.0


def make_missing(
    job: Job,
    specs: Sequence[Spec],
    *,
    cluster: Cluster,
    seats: Seats,
    progress: Progress,
    receipts: dict[str, Receipt] | None = None,
) -> tuple[list[Receipt], int]:
    """Make what is missing; all receipts in the order of the specs, and how many are new.

    `receipts` are the valid ones, where the caller has read them already.

    Raises:
        PipelineError: as `make_parts`.
    """
    if receipts is None:
        receipts = valid_receipts(job.begun.store)
    done = {name: one for name, one in receipts.items() if one.made_by == job.begun.made_by}
    todo = left_to_do(specs, done)
    progress.update(len(specs) - len(todo))

    def take(receipt: Receipt) -> None:
        done[receipt.part] = receipt
        progress.advance(1, work=receipt.rows)

    make_parts(job, todo, wanted=len(specs), cluster=cluster, seats=seats, done=take)
    return [done[spec.name] for spec in specs], len(todo)


def make_parts(
    job: Job, specs: Sequence[Spec], *, wanted: int, cluster: Cluster, seats: Seats, done: Callable[[Receipt], None]
) -> None:
    """Make and commit parts, of `wanted` that there are to be; `done` is called with each receipt as it comes.

    Parts that fail in all their attempts are put aside with their tracebacks while the others are made, and left aside
    by later commands until `cluster.retry_failed`.

    Raises:
        PipelineError: a user's error of a part; parts under way are finished first, and what they found is added.
        Mismatch: if another command makes the folder's parts from something else.
        Unfinished: if parts failed in all their attempts, or the user stopped the command.
    """
    if not specs:
        return
    failures = Failures(job.begun.store)
    known = failures.read()
    aside = {} if cluster.retry_failed else {spec.name: known[spec.name] for spec in specs if spec.name in known}
    if aside:
        print(f"warning: left aside, {_quote(aside)}; --retry-failed tries them again", file=sys.stderr, flush=True)
    specs = [spec for spec in specs if spec.name not in aside]

    def give_up(part: str, fault: Fault) -> None:
        failures.put(part, fault, cluster.attempts)
        aside[part] = fault.cause

    with job.begun.at_work(wanted) as lease:

        def take(receipt: Receipt) -> None:
            if receipt.part in known:
                failures.remove(receipt.part)
            lease.count()
            done(receipt)

        _make(Worker(job, lease.path), specs, cluster, seats, take, give_up, lease)
    if aside:
        raise Unfinished(
            f"{len(aside)} parts failed ({_quote(aside)}), all others are done; their tracebacks are in {failures}; "
            "the same command with --retry-failed tries them again"
        )


def _make(
    worker: Worker,
    specs: Sequence[Spec],
    cluster: Cluster,
    seats: Seats,
    done: Callable[[Receipt], None],
    failed: Callable[[str, Fault], None],
    lease: Lease,
) -> None:
    if not specs:
        return
    more: Any = dict(attempts=cluster.attempts, done=done, failed=failed, watch=lease.watch)
    try:
        with Stop(cluster.grace_seconds) as stop:
            if cluster.address == INLINE:
                Loop(InThisProcess(worker) if worker.job.lanes == 1 else InThreads(worker), specs, **more).run(stop)
                return
            with ray_session(cluster) as ray:
                actors = Actors(ray, worker, seats, len(specs))
                try:
                    Loop(actors, specs, **more).run(stop)
                finally:
                    actors.close()
    except KeyboardInterrupt:
        raise Unfinished("stopped; what is done is kept, the same command goes on") from None


def _quote(aside: dict[str, str]) -> str:
    named = [f"{part}: {cause}" for part, cause in sorted(aside.items())[:_QUOTED]]
    return "; ".join(named) + (f"; and {len(aside) - _QUOTED} more" if len(aside) > _QUOTED else "")


class Actors:
    """Workers on a Ray cluster: those that start, and those that have, each with the parts it holds in order.

    Args:
        ray: the module, in a session.
        worker: what each of them is.
        seats: how many workers, and what each needs.
        parts: how many there are to make.
    """

    def __init__(self, ray: Any, worker: Worker, seats: Seats, parts: int) -> None:
        check_fits(ray, seats)
        self._ray, self._worker, self._seats = ray, worker, seats
        self._lanes = worker.job.lanes
        self._actor = ray.remote(num_cpus=seats.cpus, num_gpus=seats.gpus, max_restarts=0, max_concurrency=self._lanes)(
            Worker
        )
        self._starting: dict[Any, Any] = {}
        self._held: dict[Any, deque[Any]] = {}
        self._begun: dict[Any, tuple[Spec, Any]] = {}
        self._again_at: list[float] = []
        self._start_losses = 0
        self._warn_at = time.monotonic() + _NO_WORKER_SECONDS
        self._count = min(seats.count or int(ray.cluster_resources()["CPU"] // seats.cpus), parts)
        for _ in range(self._count):
            self._start()

    def free(self) -> bool:
        """See `Hands`."""
        return any(len(held) <= self._lanes for held in self._held.values())  # those it works on, and one that waits

    def take(self, spec: Spec) -> None:
        """See `Hands`."""
        actor = min(self._held, key=lambda one: len(self._held[one]))
        reference = actor.run.remote(spec)
        self._held[actor].append(reference)
        self._begun[reference] = spec, actor

    def held(self) -> list[str]:
        """See `Hands`."""
        return [spec.name for spec, _ in self._begun.values()]

    def drop_waiting(self) -> None:
        """See `Hands`."""
        for held in self._held.values():
            while len(held) > self._lanes:
                del self._begun[held.pop()]

    def outcomes(self, seconds: float) -> list[tuple[Spec, Outcome]]:
        """See `Hands`.

        Raises:
            PipelineError: if a worker refuses to work, and none works.
            Unfinished: if workers die at their start again and again, and none works.
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
        """Give the seats back: actors keep them for as long as anything refers to them."""
        for actor in [*self._held, *self._starting.values()]:
            self._ray.kill(actor)

    def _start(self) -> None:
        actor = self._actor.remote(self._worker.job, self._worker.proof, self._worker.folder)
        self._starting[actor.settle.remote()] = actor

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
            if not isinstance(lost, self._ray.exceptions.RayTaskError) and not getattr(lost, "actor_init_failed", 0):
                self._lost_at_start(_last_line(lost))
                return
            error = PipelineError(f"no worker can start: {_last_line(lost)}")
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
            self._do_without(Unfinished(f"no worker can start: {times}; the same command goes on"))
            return
        pause = min(2.0**rounds, _LONGEST_PAUSE)
        print(f"warning: a worker died at its start ({cause}); another in {pause:g} s", file=sys.stderr, flush=True)
        self._again_at.append(time.monotonic() + pause)

    def _do_without(self, error: PipelineError) -> None:
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
            return spec, Fault(_last_line(error), str(error))
        except self._ray.exceptions.RayError as error:
            if self._held.pop(actor, None) is not None:
                self._ray.kill(actor)  # it may only be out of reach
                self._start()
            done = self._committed(spec)  # and lost only the word of it
            return spec, done or Lost(_last_line(error), own=worked_on and _died_alone(self._ray, error))

    def _committed(self, spec: Spec) -> Receipt | None:
        """The receipt of a part whose worker is lost, if it had put it before: storage is the truth."""
        begun = self._worker.job.begun
        with suppress(PipelineError):
            receipt = valid_receipt(begun.store, spec.name)
            return receipt if receipt and receipt.made_by == begun.made_by else None
        return None

    def _warn_without_workers(self) -> None:
        now = time.monotonic()
        if self._held:
            self._warn_at = now + _NO_WORKER_SECONDS
        elif now > self._warn_at:
            self._warn_at = now + 10 * _NO_WORKER_SECONDS
            has = self._ray.cluster_resources()
            print(
                f"warning: no worker could be started for {_NO_WORKER_SECONDS:g} s; one needs {self._seats.cpus} CPU "
                f"and {self._seats.gpus} GPU, the cluster has {has.get('CPU', 0):g} and {has.get('GPU', 0):g}; waiting",
                file=sys.stderr,
                flush=True,
            )


def _died_alone(ray: Any, error: Exception) -> bool:
    """Whether a process died on a node that lives, as one does that the kernel kills for its memory."""
    if isinstance(error, ray.exceptions.OutOfMemoryError | ray.exceptions.WorkerCrashedError):
        return True
    return isinstance(error, ray.exceptions.ActorDiedError) and "node has died" not in str(error)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
