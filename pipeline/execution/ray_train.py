"""Launch a training: Ray Train's TorchTrainer as launcher, our own checkpoints as the state.

Each attempt is a fresh Ray run that finds the newest checkpoint by its receipt. Rejected: Ray Train's own restore,
whose snapshot is written in place and changes between versions, and its report(), which is a barrier of seconds.
"""

import contextlib
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.execution.devices import device_count, run_device
from pipeline.execution.lease import Lease
from pipeline.execution.process_group import process_group
from pipeline.execution.progress import Progress
from pipeline.execution.ray_compat import embedded_folder, own_group_config
from pipeline.execution.ray_session import INLINE, LOCAL, Resources, attached, check_fits, ray_session
from pipeline.execution.shutdown import GracefulShutdown, keep_signal_handlers
from pipeline.execution.stage_dir import StageDir
from pipeline.execution.worker import STAGING, check_shared_storage
from schemas.config import RunFile
from schemas.errors import IncompleteError, UserError, last_line
from stages.data.servers import keep_sockets_in
from stages.storage.locks import scratch_folder
from stages.storage.run_files import store_run_file
from stages.train.loop import train
from stages.train.plan import Plan

_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 10.0


def launch_training(config: RunFile, plan: Plan, stage_dir: StageDir, started: int) -> dict[str, Any]:
    """Train on all devices to the plan's last step; see `stages.train.loop.train` for what comes back.

    Raises:
        UserError: as the training raised it.
        IncompleteError: if workers were lost in all attempts without a step forward, or the user stopped the command.
    """
    bar = Progress(f"train {config.train.name}", total=plan.steps, unit="steps", done=started)
    try:
        with (
            attached(config.cluster),
            bar as progress,
            GracefulShutdown(config.cluster.grace_seconds) as stop,
            stage_dir.hold_lease(plan.steps, step=started) as lease,
        ):
            store_run_file(stage_dir.store, config)
            return _train(config, stage_dir, _Reporter(progress, lease, started, stop))
    except KeyboardInterrupt:
        raise IncompleteError("stopped; rerun the same command to resume from the newest checkpoint") from None


def _train(config: RunFile, stage_dir: StageDir, report: "_Reporter") -> dict[str, Any]:
    if config.cluster.address == INLINE:
        return train(config, rank=0, world=1, device=torch.device(run_device(config)), report=report)
    with ray_session(config.cluster, report.stop) as ray:
        return _attempts(ray, config, stage_dir, report)


class _Reporter:
    """Moves the progress to a step, with its loss as the note; returns whether the user wants to stop."""

    def __init__(self, progress: Progress, lease: Lease, started: int, stop: GracefulShutdown) -> None:
        self._progress, self.lease, self.stop = progress, lease, stop
        self.step = started

    def __call__(self, step: int, metrics: dict[str, Any]) -> bool:
        self.lease.count(max(step - self.step, 0))
        self.step = max(step, self.step)
        self._progress.update(step)
        if "loss" in metrics:
            self._progress.note(_note(metrics))
        return self.stop.requested


def _note(metrics: dict[str, Any]) -> str:
    """The progress line's text for the newest metrics."""
    rate = (
        f", {metrics['views_per_second']:,.0f} views/s" if "views_per_second" in metrics else ""
    )  # none, just resumed
    used = f", MFU {metrics['mfu']:.0%}" if "mfu" in metrics else ""
    right = f", val top-1 {metrics['val_top1']:.1%} at step {metrics['val_step']:,}" if "val_top1" in metrics else ""
    now = f", validating {metrics['validating']:.0%}" if "validating" in metrics else ""
    return f"loss {metrics['loss']:.3f}{rate}{used}{right}{now}"


def _attempts(ray: Any, config: RunFile, stage_dir: StageDir, report: _Reporter) -> dict[str, Any]:
    """Try until the training ends; attempts are counted anew whenever one got further than the last.

    Raises:
        IncompleteError: if an embedded Ray has lost the training's controller.
        KeyboardInterrupt: if the user wants an end and no attempt is under way.
    """
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    left, furthest = config.cluster.attempts, 0
    while not report.stop.requested:
        try:
            return _fit(ray, config, stage_dir, report)
        except (TrainingFailedError, RayError) as error:
            if config.cluster.address == LOCAL and not isinstance(error, TrainingFailedError):
                raise IncompleteError(
                    "the embedded Ray lost the process that controls the training, as when memory runs out; "
                    "rerun the same command to resume from the newest checkpoint"
                ) from None
            cause = _cause(error)
            if isinstance(cause, UserError) and not isinstance(cause, IncompleteError):
                raise cause from None
            if report.stop.requested:
                break
            left = config.cluster.attempts if report.step > furthest else left
            furthest, left = max(report.step, furthest), left - 1
            line = last_line(cause)
            if not left:
                raise IncompleteError(
                    f"training failed {config.cluster.attempts} times at step {furthest} ({line}); "
                    "rerun the same command to resume from the newest checkpoint"
                ) from error
            print(
                f"warning: training is started again from its newest checkpoint ({line})", file=sys.stderr, flush=True
            )
    raise KeyboardInterrupt


def _fit(ray: Any, config: RunFile, stage_dir: StageDir, report: _Reporter) -> dict[str, Any]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpu, world = run_device(config) == "cuda", device_count(config)
    cpus = 1 + config.train.processes if gpu else 1
    check_fits(ray, Resources(count=1, cpus=cpus * world, gpus=world if gpu else 0), f"training with {world} workers")
    actor = ray.remote(num_cpus=0)(_ProgressActor).remote()
    stage = {"folder": os.getcwd(), "stage": stage_dir.store.absolute, "lease_path": report.lease.path}
    with scratch_folder(STAGING) as scratch, _poll_progress(ray, actor, report), keep_signal_handlers():
        TorchTrainer(
            _in_worker,
            train_loop_config={"run": config, "actor": actor, "shared_storage": stage, "sockets": embedded_folder(ray)},
            torch_config=own_group_config(),
            scaling_config=ScalingConfig(num_workers=world, use_gpu=gpu, resources_per_worker={"CPU": cpus}),
            run_config=RunConfig(
                name=f"{config.train.name}-{uuid.uuid4().hex[:8]}",
                storage_path=str(scratch),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=1),
            ),
        ).fit()
    result: dict[str, Any] = ray.get(actor.result.remote())
    return result


def _in_worker(config: dict[str, Any]) -> None:
    """One training process, which Ray Train has joined to the others."""
    import ray.train
    import ray.train.torch

    context, actor = ray.train.get_context(), config["actor"]
    run: RunFile = config["run"]
    if config["sockets"]:
        keep_sockets_in(config["sockets"])
    if error := check_shared_storage(**config["shared_storage"]):
        raise error  # Ray Train works elsewhere; relative paths of the run file are the command's
    rank, world, device = context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device()
    with process_group(
        rank=rank,
        world=world,
        device=device,
        alone=context.get_local_world_size() == world,
        root=Path(config["sockets"]) if config["sockets"] else None,
        host=ray.util.get_node_ip_address(),
        announce=lambda place: ray.get(actor.announce.remote(place)),
        meeting=lambda: str(ray.get(actor.meeting.remote())),
    ):
        result = train(run, rank=rank, world=world, device=device, report=_RankZeroReporter(ray, actor))
    if rank == 0:
        ray.get(actor.finish.remote(result))


class _RankZeroReporter:
    """Tells the actor from rank 0 how far it is, and hears whether the user wants an end.

    No step waits for an answer: while one is on its way, nothing is sent. Before the first step it is waited for.
    """

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor, self._answer = ray, actor, None
        self._ends = False

    def __call__(self, step: int, metrics: dict[str, Any]) -> bool:
        first = self._answer is None
        if first:
            self._answer = self._actor.put.remote(step, metrics)
        if self._ray.wait([self._answer], timeout=_ANSWER_SECONDS if first else 0)[0]:
            with contextlib.suppress(self._ray.exceptions.RayError):  # an actor that is lost ends nothing under way
                self._ends = self._ray.get(self._answer)
            self._answer = self._actor.put.remote(step, metrics)
        return self._ends


class _ProgressActor:
    """Where rank 0 reports progress and the command whether the user wants to stop; an actor that costs no CPU."""

    def __init__(self) -> None:
        self._news: tuple[int, dict[str, Any]] = (0, {})
        self._ends = False
        self._meeting = ""
        self._result: dict[str, Any] = {}

    def put(self, step: int, metrics: dict[str, Any]) -> bool:
        self._news = step, metrics
        return self._ends

    def news(self, ends: bool) -> tuple[int, dict[str, Any]]:
        self._ends = ends
        return self._news

    def announce(self, place: str) -> None:
        self._meeting = place

    def meeting(self) -> str:
        return self._meeting

    def finish(self, result: dict[str, Any]) -> None:
        self._result = result

    def result(self) -> dict[str, Any]:
        return self._result


@contextlib.contextmanager
def _poll_progress(ray: Any, actor: Any, report: _Reporter) -> Iterator[None]:
    """Read the actor now and then while the caller blocks, and write there what the user wants."""
    over = threading.Event()

    def read() -> None:
        while not over.wait(_POLL_SECONDS):
            with contextlib.suppress(ray.exceptions.RayError):
                step, metrics = ray.get(actor.news.remote(report.stop.requested), timeout=_ANSWER_SECONDS)
                if step:
                    report(step, metrics)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _cause(error: Exception) -> BaseException:
    """The user's error among the workers' failures, else any of them."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = [getattr(one, "cause", None) or one for one in failures.values()] or [error]
    return next((one for one in causes if isinstance(one, UserError)), causes[0])
