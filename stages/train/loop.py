"""Train: shards (and decisions) → a model, resumable to the bit.

Step s sees the s-th batch of the run's stream, its learning rate is a function of s, and the randomness inside the
model is drawn from (seed, s, rank): so a training is its checkpoint and its step, and nothing else has to be
restored. One code path serves one process and many; many are joined by whoever starts them.
"""

from collections.abc import Callable
from typing import Any

import torch

from schemas.config import RunFile
from stages.data.loader import load, on_device
from stages.models.precision import chosen_precision, deterministic_algorithms
from stages.train.dataset import TrainDataset
from stages.train.plan import Plan, plan_training
from stages.train.stop_sync import StopSync
from stages.train.trainer import Trainer

Report = Callable[[int, dict[str, Any]], bool]
"""Told a step and the newest metrics; whether the user wants an end."""


def train(config: RunFile, *, rank: int, world: int, device: torch.device, report: Report) -> dict[str, Any]:
    """Train to the plan's last step, or until the user wants an end, from the newest checkpoint if there is one.

    Args:
        config: the run file.
        rank: of this process among `world`, which torch.distributed already joins.
        world: number of training processes.
        device: of this process.
        report: called on rank 0 before the first step and after each.

    Returns:
        `steps`, `resumed_from_step`, `loss`. With fewer steps than planned, the newest checkpoint is at the last one.

    Raises:
        UserError: if the plan does not hold, stored bytes are wrong, or the loss is not finite.
    """
    precision = chosen_precision(config.train.precision, "student", device.type)
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    with deterministic_algorithms(config.train.deterministic and device.type == "cuda"):
        return _train(config, rank=rank, world=world, device=device, report=report)


def _train(config: RunFile, *, rank: int, world: int, device: torch.device, report: Report) -> dict[str, Any]:
    plan = plan_training(config, world)
    trainer = Trainer(config, plan, rank=rank, world=world, device=device)
    complete = False
    try:
        done = _steps(config, plan, trainer, report)
        complete = done["steps"] == plan.steps
        return done
    finally:
        trainer.trackers.close(done=complete)


def _steps(config: RunFile, plan: Plan, trainer: Trainer, report: Report) -> dict[str, Any]:
    """The steps from the newest checkpoint on."""
    rank, world, device = trainer.rank, trainer.world, trainer.device
    step = started = trainer.restore()
    batches = load(
        trainer.data,
        workers=config.train.processes,
        order=range(started, plan.steps),
        pin=device.type == "cuda",
        preload=(TrainDataset.__module__,),
    )
    ready = trainer.metrics.timed(on_device(batches, device))
    ending = StopSync(started, world=world, device=device)

    def asked(validating: float | None = None) -> bool:
        return rank == 0 and report(step, trainer.news(validating))

    ended = ending.should_stop(step, asked()) or not trainer.validate(step, asked)  # what a kill left without it
    trainer.show()
    while step < plan.steps and not ended:
        trainer.step(next(ready))
        step += 1
        ended = ending.should_stop(step, asked())
        if ended or trainer.saves_at(step):
            trainer.save(step)
            ended = ended or not trainer.validate(step, asked)
            trainer.note_hours(step)
            trainer.show()
    loss = trainer.metrics.loss()
    if step == plan.steps and not (rank == 0 and trainer.validator.missing(step)):
        trainer.finish(loss)
    return {"steps": step, "resumed_from_step": started, "loss": loss}
