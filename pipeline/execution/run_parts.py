"""A stage's missing parts are made, and those that cannot be made are set aside.

Storage is the truth: what Ray forgets, the next command finds again.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.execution.failures import Failures, PartFailure
from pipeline.execution.lease import Lease
from pipeline.execution.progress import Progress
from pipeline.execution.ray_compat import embedded_folder
from pipeline.execution.ray_executor import RayExecutor
from pipeline.execution.ray_session import INLINE, Resources, attached, ray_session
from pipeline.execution.scheduler import InlineExecutor, Scheduler, ThreadExecutor
from pipeline.execution.shutdown import GracefulShutdown
from pipeline.execution.worker import Job, Spec, Worker, left_to_do
from schemas.config import ClusterConfig
from schemas.errors import IncompleteError
from schemas.receipts import Receipt
from stages.storage.commit import valid_receipts

_QUOTED = 3


def make_missing(
    job: Job,
    specs: Sequence[Spec],
    *,
    cluster: ClusterConfig,
    resources: Resources,
    progress: Progress,
    receipts: dict[str, Receipt] | None = None,
) -> tuple[list[Receipt], int]:
    """Make what is missing; all receipts in the order of the specs, and how many are new.

    `receipts` are the valid ones, where the caller has read them already.

    Raises:
        UserError: as `make_parts`.
    """
    if receipts is None:
        receipts = valid_receipts(job.stage_dir.store)
    done = {name: one for name, one in receipts.items() if one.made_by == job.stage_dir.made_by}
    todo = left_to_do(specs, done)
    progress.update(len(specs) - len(todo))

    def take(receipt: Receipt) -> None:
        done[receipt.part] = receipt
        progress.advance(1, work=receipt.rows)

    make_parts(job, todo, wanted=len(specs), cluster=cluster, resources=resources, done=take)
    return [done[spec.name] for spec in specs], len(todo)


def make_parts(
    job: Job,
    specs: Sequence[Spec],
    *,
    wanted: int,
    cluster: ClusterConfig,
    resources: Resources,
    done: Callable[[Receipt], None],
) -> None:
    """Make and commit parts, of `wanted` that there are to be; `done` is called with each receipt as it comes.

    Parts that fail in all their attempts are quarantined with their tracebacks while the others are made, and skipped
    by later commands until `cluster.retry_failed`.

    Raises:
        UserError: a user's error of a part; parts under way are finished first, and what they found is added.
        MismatchError: if another command makes the folder's parts from something else.
        IncompleteError: if parts failed in all their attempts, or the user stopped the command.
    """
    if not specs:
        return
    failures = Failures(job.stage_dir.store)
    known = failures.read()
    aside = {} if cluster.retry_failed else {spec.name: known[spec.name] for spec in specs if spec.name in known}
    if aside:
        print(f"warning: left aside, {_quote(aside)}; --retry-failed tries them again", file=sys.stderr, flush=True)
    specs = [spec for spec in specs if spec.name not in aside]

    def give_up(part: str, fault: PartFailure) -> None:
        failures.put(part, fault, cluster.attempts)
        aside[part] = fault.cause

    with attached(cluster), job.stage_dir.hold_lease(wanted) as lease:

        def take(receipt: Receipt) -> None:
            if receipt.part in known:
                failures.remove(receipt.part)
            lease.count()
            done(receipt)

        _make(Worker(job, lease.path), specs, cluster, resources, take, give_up, lease)
    if aside:
        raise IncompleteError(
            f"{len(aside)} parts failed ({_quote(aside)}), all others are done; their tracebacks are in {failures}; "
            "the same command with --retry-failed tries them again"
        )


def _make(
    worker: Worker,
    specs: Sequence[Spec],
    cluster: ClusterConfig,
    resources: Resources,
    done: Callable[[Receipt], None],
    failed: Callable[[str, PartFailure], None],
    lease: Lease,
) -> None:
    if not specs:
        return
    more: Any = dict(attempts=cluster.attempts, done=done, failed=failed, watch=lease.watch)
    try:
        with GracefulShutdown(cluster.grace_seconds) as stop:
            if cluster.address == INLINE:
                Scheduler(
                    InlineExecutor(worker) if worker.job.lanes == 1 else ThreadExecutor(worker), specs, **more
                ).run(stop)
                return
            with ray_session(cluster, stop) as ray:
                worker.sockets = embedded_folder(ray)
                actors = RayExecutor(ray, worker, resources, len(specs))
                try:
                    Scheduler(actors, specs, **more).run(stop)
                finally:
                    actors.close()
    except KeyboardInterrupt:
        raise IncompleteError("stopped; what is done is kept; rerun the same command to resume") from None


def _quote(aside: dict[str, str]) -> str:
    named = [f"{part}: {cause}" for part, cause in sorted(aside.items())[:_QUOTED]]
    return "; ".join(named) + (f"; and {len(aside) - _QUOTED} more" if len(aside) > _QUOTED else "")
