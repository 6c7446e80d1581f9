"""Ray as the executor: one bounded loop that hands out missing parts and takes receipts back.

Storage is the truth: what Ray forgets, the next command finds again. Workers are actors, for sharding and labelling
alike, because a teacher is loaded once a process and one mechanism is enough. They are never restarted by Ray; the
loop resubmits what a lost worker held, with a budget of attempts for each part. Only receipts cross the object store.
"""

import os
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipeline.progress import Progress
from pipeline.work import Job, Spec, Worker, left_to_do
from schemas.config import Cluster
from schemas.errors import PipelineError, Unfinished, together
from schemas.receipts import Receipt
from stages.store import valid_receipts

INLINE = "inline"
_LOCAL = "local"
_KNOCK_SECONDS = 10.0
_IN_FLIGHT = 2
"""Parts an actor holds at once: one it works on, one that waits."""


@dataclass(frozen=True)
class Seats:
    """How many workers, and what each needs of the cluster."""

    count: int
    cpus: int
    gpus: int = 0


@contextmanager
def ray_session(cluster: Cluster) -> Iterator[Any]:
    """Ray for the time of a command: an embedded one for "local", else the cluster at the address.

    Raises:
        PipelineError: if there is no cluster at the address.
    """
    before = dict(os.environ)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if cluster.address == _LOCAL:
        # Without a token Ray runs anybody's code; this one lives in the environment of its processes only.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_token())
    else:
        _knock(cluster.address)
    import ray  # only now: it reads the token when it is loaded

    if ray.is_initialized():
        yield ray
        return
    try:
        with own_signals():
            _init(ray, cluster)
        yield ray
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _knock(address: str) -> None:
    """See whether anybody listens at host:port, since Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise PipelineError(f"cluster.address = {address}: no Ray there ({error})") from None


@cache
def _token() -> str:
    """One token for the life of this process, since Ray keeps the first it reads."""
    return secrets.token_hex(32)


@contextmanager
def own_signals() -> Iterator[None]:
    """Put the handlers of SIGINT and SIGTERM back: Ray leaves its own behind, which know no exit code 3."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _init(ray: Any, cluster: Cluster) -> None:
    quiet = {"logging_level": "ERROR", "log_to_driver": False}  # what a worker has to say comes back as a value
    try:
        if cluster.address == _LOCAL:
            ray.init(address=_LOCAL, include_dashboard=False, object_store_memory=150 << 20, **quiet)
        else:
            passive = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}  # as the command line sets it for local processes
            ray.init(address=cluster.address, runtime_env=passive, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[0]
        raise PipelineError(f"cluster.address = {cluster.address}: no Ray there ({cause})") from None


def make_missing(
    job: Job, specs: Sequence[Spec], *, cluster: Cluster, seats: Seats, progress: Progress
) -> tuple[list[Receipt], int]:
    """Make what is missing; all receipts in the order of the specs, and how many are new.

    Raises:
        PipelineError: as `make_parts`.
    """
    receipts = {name: one for name, one in valid_receipts(job.store).items() if one.made_by == job.made_by}
    todo = left_to_do(specs, receipts)
    progress.update(len(specs) - len(todo))

    def done(receipt: Receipt) -> None:
        receipts[receipt.part] = receipt
        progress.advance(1, work=receipt.rows)

    make_parts(job, todo, cluster=cluster, seats=seats, done=done)
    return [receipts[spec.name] for spec in specs], len(todo)


def make_parts(
    job: Job, specs: Sequence[Spec], *, cluster: Cluster, seats: Seats, done: Callable[[Receipt], None]
) -> None:
    """Make and commit parts; `done` is called with each receipt as it comes.

    Raises:
        PipelineError: a user's error of a part; parts under way are finished first, and what they found is added.
        Unfinished: if parts failed in all their attempts, or the user stopped the command.
    """
    if not specs:
        return
    try:
        if cluster.address == INLINE:
            _inline(job, specs, done)
            return
        with ray_session(cluster) as ray:
            _Pool(ray, job, specs, seats, cluster.attempts, done).run()
    except KeyboardInterrupt:
        raise Unfinished("stopped; what is done is kept, the same command goes on") from None


def check_fits(ray: Any, seats: Seats, who: str = "a worker") -> None:
    """Compare the needs of one seat with what the cluster has, since Ray would wait for ever.

    Raises:
        PipelineError: if no worker could ever start.
    """
    has = ray.cluster_resources()
    for resource, needed in (("CPU", seats.cpus), ("GPU", seats.gpus)):
        if has.get(resource, 0) < needed:
            raise PipelineError(
                f"{who} needs {needed} {resource}, the cluster has {has.get(resource, 0):g}; "
                "lower labels.workers, train.workers or cluster.devices, or add nodes"
            )


def _inline(job: Job, specs: Sequence[Spec], done: Callable[[Receipt], None]) -> None:
    worker = Worker(job)
    for spec in specs:
        done(_receipt(worker.run(spec)))


def _receipt(outcome: Receipt | PipelineError) -> Receipt:
    if isinstance(outcome, PipelineError):
        raise outcome
    return outcome


class _Pool:
    """The loop: seats, parts waiting, parts under way."""

    def __init__(
        self, ray: Any, job: Job, specs: Sequence[Spec], seats: Seats, attempts: int, done: Callable[[Receipt], None]
    ) -> None:
        check_fits(ray, seats)
        self._ray, self._job, self._attempts, self._done = ray, job, attempts, done
        self._actor = ray.remote(num_cpus=seats.cpus, num_gpus=seats.gpus, max_restarts=0)(Worker)
        self._waiting: deque[tuple[Spec, int]] = deque((spec, 1) for spec in specs)
        self._running: dict[Any, tuple[Spec, int, Any]] = {}
        self._actors = [self._actor.remote(job) for _ in range(min(seats.count, len(specs)))]
        self._failed: dict[str, str] = {}
        self._refused: list[PipelineError] = []

    def run(self) -> None:
        try:
            while self._waiting or self._running:
                self._submit()
                finished, _ = self._ray.wait(list(self._running), num_returns=1)
                for reference in finished:
                    self._take(reference)
        finally:
            for actor in self._actors:  # else they keep their seats for as long as anything refers to them
                self._ray.kill(actor)
        if self._refused:
            raise together(self._refused)
        if self._failed:
            part, cause = next(iter(self._failed.items()))
            raise Unfinished(
                f"{len(self._failed)} parts failed {self._attempts} times, all others are done; "
                f"{part}: {cause}; the same command tries them again"
            )

    def _submit(self) -> None:
        load = {id(actor): 0 for actor in self._actors}
        for _, _, actor in self._running.values():
            load[id(actor)] = load.get(id(actor), 0) + 1
        for _ in range(_IN_FLIGHT):
            for actor in self._actors:
                if self._waiting and load[id(actor)] < _IN_FLIGHT:
                    spec, attempt = self._waiting.popleft()
                    self._running[actor.run.remote(spec)] = spec, attempt, actor
                    load[id(actor)] += 1

    def _take(self, reference: Any) -> None:
        spec, attempt, actor = self._running.pop(reference)
        try:
            outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._retry(spec, attempt, actor, error)
            return
        if isinstance(outcome, PipelineError):
            self._refused.append(outcome)
            self._waiting.clear()
        else:
            self._done(outcome)

    def _retry(self, spec: Spec, attempt: int, actor: Any, error: Exception) -> None:
        if not isinstance(error, self._ray.exceptions.RayTaskError) and actor in self._actors:
            self._actors[self._actors.index(actor)] = self._actor.remote(self._job)  # the process or its node is gone
        cause = str(error).strip().splitlines()[-1]
        if not self._refused and attempt < self._attempts:
            print(f"warning: {spec.name} is tried again ({cause})", file=sys.stderr, flush=True)
            time.sleep(min(2.0 ** (attempt - 1), 30.0))
            self._waiting.append((spec, attempt + 1))
        elif not self._refused:
            self._failed[spec.name] = cause
