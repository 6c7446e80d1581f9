"""Train: shards (and decisions) → a model, resumable to the bit, with no teacher in memory.

Step s sees the s-th batch of the run's stream, its learning rate is a function of s, and the randomness inside the
model is drawn from (seed, s, rank): so a training is its checkpoint and its step, and nothing else has to be
restored. One code path serves one process and many; many are joined by whoever starts them.

Legend: B views of a local batch, K classes.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.manifests import TrainManifest
from schemas.parts import ManifestPart
from schemas.receipts import fingerprint
from stages.data.loader import load, on_device
from stages.models.classifier import Heads
from stages.models.flops import TRAINING, forward_flops, peak_flops
from stages.models.from_views import FromViews
from stages.models.precision import Precision, chosen_precision, deterministic_algorithms
from stages.models.student import new_student
from stages.models.tensors import to_bytes
from stages.models.weights import EMA_FILE, MODEL_FILE
from stages.replay.draws import Draws, Purpose
from stages.replay.mix import Mix
from stages.storage.commit import MANIFEST, refuse_other_plan
from stages.storage.store import Store
from stages.train import losses
from stages.train.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from stages.train.dataset import Batch, TrainDataset
from stages.train.hand_out import hand_out
from stages.train.metrics import Metrics
from stages.train.optim import build_optimizer, learning_rate, state_to_tensors, tensors_to_state
from stages.train.plan import TAUGHT, Plan, plan_training
from stages.train.stop_sync import StopSync

Report = Callable[[int, dict[str, Any]], bool]
"""Told a step and the newest metrics; whether the user wants an end."""
_SCALE = "scaler/"
_SCALE_KEYS = ("scale", "_growth_tracker")
"""In a checkpoint's state, what torch's gradient scaler says of itself, but for its constants."""


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
    ended = ending.should_stop(step, rank == 0 and report(step, trainer.metrics.last))
    while step < plan.steps and not ended:
        trainer.step(next(ready))
        step += 1
        ended = ending.should_stop(step, rank == 0 and report(step, trainer.metrics.last))
        if ended or step % trainer.checkpoint_every == 0 or step == plan.steps:
            trainer.save(step)
    loss = trainer.metrics.loss()
    if step == plan.steps:
        trainer.finish(loss)
    return {"steps": step, "resumed_from_step": started, "loss": loss}


class Trainer:
    """Model, optimiser, moving average and meters of one process; `step` by `step`."""

    def __init__(self, config: RunFile, plan: Plan, *, rank: int, world: int, device: torch.device) -> None:
        self.config, self.plan, self.rank, self.world, self.device = config, plan, rank, world, device
        if device.type == "cpu":
            # Not the launcher's number, since bits may depend on it; a core is left to the data.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // world - 1))
        self.store = Store(config.workspace).child(f"runs/{config.train.name}")
        self.made_by = fingerprint(plan.made_from)
        self.checkpoint_every = config.train.checkpoint_every or plan.steps_per_epoch
        name = chosen_precision(config.train.precision, "student", device.type)
        self.precision = Precision(name, device, "train.precision")
        self.classifier = new_student(config, plan.split).to(device)
        decay = config.train.ema_decay
        self.ema = ModelEmaV3(self.classifier.model, decay=decay, foreach=True) if decay else None
        self.optimizer = build_optimizer(
            self.classifier.model,
            optimizer=config.train.optimizer,
            weight_decay=config.train.weight_decay,
            fused=device.type == "cuda",
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision.scaled)
        self.data = TrainDataset(
            plan.split,
            config.views,
            plan.stream(config),
            plan.labels,
            soft_tau=config.train.tau if config.train.distillation == "soft" else None,
            min_margin=config.train.min_margin,
            batch=config.train.batch_size,
            rank=rank,
            world=world,
            # Statistics of a batch, which are a rank's own, want its images to be different ones.
            spread=any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in self.classifier.modules()),
        )
        peak = peak_flops(device)
        self.metrics = Metrics(
            self.store,
            self.made_by,
            config.train.log_every,
            rank=rank,
            world=world,
            device=device,
            tensorboard=config.train.tensorboard,
            views_at_peak=peak and peak / (TRAINING * forward_flops(self.classifier, config.views.image_size, device)),
        )
        self._draws = Draws(config.train.seed, Purpose.MODEL)
        self._student = FromViews(self.classifier, self.precision)
        self._forward = self._wrapped()

    def restore(self) -> int:
        """Go back to the newest checkpoint; the number of steps it had taken."""
        found = self._newest()
        if found is None:
            self.metrics.restore(0, {}, b"")
            return 0
        if found.step > self.plan.steps:
            raise UserError(
                f"{self.store}: its newest checkpoint took {found.step} steps, the run file wants {self.plan.steps}; "
                "raise train.max_steps, or use another train.name"
            )
        self.classifier.model.load_state_dict(found.model)
        if self.ema:
            self.ema.module.load_state_dict(found.ema)
        state = dict(found.state)
        meters = {name: state.pop(name) for name in list(state) if name.startswith(Metrics.PREFIX)}
        self._restore_scale({name: state.pop(name) for name in list(state) if name.startswith(_SCALE)})
        tensors_to_state(self.optimizer, self.classifier.model, state)
        self.metrics.restore(found.step, meters, found.lines)
        if self.rank == 0:
            self.metrics.show()
        return found.step

    def _newest(self) -> Checkpoint | None:
        """The newest checkpoint; rank 0 sends it, because another command may commit one meanwhile."""
        found = newest_checkpoint(self.store, self.made_by, warn=_warn) if self.rank == 0 else None
        return found if self.world == 1 else hand_out(found, rank=self.rank, device=self.device)

    def step(self, batch: Batch) -> None:
        """One step of the optimiser on one local batch on the device."""
        with self.precision.switches(
            search=not self.classifier.transformer, deterministic=self.config.train.deterministic
        ):
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        self.classifier.train()
        lr = self._learning_rate(batch.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        count = len(batch.classes)
        size = self.config.train.micro_batch or count
        for nth, start in enumerate(range(0, count, size)):
            part = _slice(batch, start, min(start + size, count))
            self._seed_model(batch.step, nth)
            last = start + size >= count
            with contextlib.nullcontext() if last else self._no_sync():
                terms = self._losses(part)
                self.scaler.scale(terms["loss"] * (len(part.classes) / count)).backward()
            self.metrics.add(terms, len(part.classes))
        self.scaler.step(self.optimizer)  # leaves a step out whose scaled gradients were too large
        self.scaler.update()
        if self.ema:
            self.ema.update(self.classifier.model)
        self.metrics.end_step(batch.step, lr, batch.step // self.plan.steps_per_epoch, count, self._addresses)

    def save(self, step: int) -> None:
        """Commit a checkpoint after `step` steps; rank 0 writes."""
        self.metrics.refuse_bad_losses(self._addresses)
        self._refuse_bad_weights(step - 1)
        sums = self.metrics.state()
        if self.rank:
            return
        checkpoint = Checkpoint(
            step=step,
            model=self.classifier.model.state_dict(),
            ema=self.ema.module.state_dict() if self.ema else {},
            state=state_to_tensors(self.optimizer, self.classifier.model) | self._scale() | sums,
            lines=self.metrics.lines(),
        )
        save_checkpoint(self.store, checkpoint, self.made_by, self.config.train.keep_checkpoints)
        self.metrics.show()

    def _scale(self) -> dict[str, Tensor]:
        """What fp16's gradients are multiplied with, and for how long it was right; nothing in other precisions."""
        state = self.scaler.state_dict()
        return {f"{_SCALE}{key}": torch.tensor(state[key], dtype=torch.float64) for key in _SCALE_KEYS if key in state}

    def _restore_scale(self, state: dict[str, Tensor]) -> None:
        if state:
            found = {key: state[f"{_SCALE}{key}"].item() for key in _SCALE_KEYS}
            found["_growth_tracker"] = int(found["_growth_tracker"])
            self.scaler.load_state_dict(self.scaler.state_dict() | found)

    def _refuse_bad_weights(self, step: int) -> None:
        """A gradient may be bad where the loss was not; it must not enter the checkpoint that is gone back to."""
        bad = [name for name, value in self.classifier.model.named_parameters() if not bool(value.isfinite().all())]
        if bad:
            raise UserError(
                f"{bad[0]} is not finite after step {step} though the losses were; {self._addresses(step)}; the "
                'last good checkpoint is kept: lower train.lr, or set train.precision = "fp32"'
            )

    def finish(self, loss: float | None) -> None:
        """Write the trained model, then the manifest, which completes the run."""
        if self.rank:
            return
        refuse_other_plan(self.store, self.made_by)
        files = [self.store.put(MODEL_FILE, to_bytes(self.classifier.model.state_dict()))]
        if self.ema:
            files.append(self.store.put(EMA_FILE, to_bytes(self.ema.module.state_dict())))
        manifest = TrainManifest(
            stage="train",
            made_from=self.plan.made_from,
            made_by=self.made_by,
            steps=self.plan.steps,
            loss=loss,
            parts=(ManifestPart(part="model", rows=self.plan.steps, files=tuple(files)),),
        )
        self.store.put(MANIFEST, manifest.to_json())

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        train = self.config.train
        heads: Heads = self._forward(*self._student.given(batch.views, batch.mix))
        partners = batch.classes.unflatten(0, (-1, 2)).flip(1).flatten()
        targets = losses.soft_targets(
            batch.classes,
            partners,
            batch.mix.lam.repeat_interleave(2),
            num_classes=heads.classes.shape[1],
            smoothing=train.label_smoothing,
        )
        terms = {"class_loss": losses.class_loss(heads.classes, targets)}
        logits = heads.classes if heads.distillation is None else heads.distillation
        second = None
        if train.distillation in TAUGHT:
            second = terms["teacher_loss"] = self._teacher_loss(logits, batch, targets)
            terms["teacher_agreement"] = (logits.argmax(1) == batch.decisions).float().mean()
            if batch.kept is not None:
                terms["kept_decisions"] = batch.kept.float().mean()
        elif train.distillation == "label":
            second = terms["label_loss"] = losses.class_loss(logits, targets)
        return {"loss": losses.total(terms["class_loss"], second, alpha=train.alpha)} | terms

    def _teacher_loss(self, logits: Tensor, batch: Batch, targets: Tensor) -> Tensor:
        tau, reduction, soft = self.config.train.tau, self.config.train.soft_reduction, batch.soft
        if batch.kept is not None:
            return losses.selected_distillation(logits, batch.decisions, batch.kept, targets)
        if soft is None:
            return losses.hard_distillation(logits, batch.decisions)
        if soft.classes is None or soft.log_sum_exp is None:
            return losses.soft_distillation(logits, soft.logits, tau=tau, reduction=reduction)
        return losses.topk_distillation(
            logits, soft.logits, soft.classes, soft.log_sum_exp, tau=tau, reduction=reduction
        )

    def _wrapped(self) -> Callable[..., Any]:
        model: nn.Module = self._student
        if self.world > 1:
            # Without distillation a distilled model's second head gets no gradient, as in the authors' code.
            unused = self.classifier.distilled and self.config.train.distillation == "none"
            model = DistributedDataParallel(model, find_unused_parameters=unused)
        self._no_sync: Callable[[], Any] = getattr(model, "no_sync", contextlib.nullcontext)
        # The compiler's own random numbers are not torch's: a resume without it would draw other depths.
        return torch.compile(model, options={"fallback_random": True}) if self.config.train.compile is True else model

    def _learning_rate(self, step: int) -> float:
        train = self.config.train
        scale = train.batch_size / 512 if train.scale_lr else 1.0
        return learning_rate(
            step,
            steps_per_epoch=self.plan.steps_per_epoch,
            epochs=train.epochs,
            warmup_epochs=train.warmup_epochs,
            peak=train.lr * scale,
            warmup_lr=train.warmup_lr,
            min_lr=train.min_lr,
        )

    def _seed_model(self, step: int, micro: int) -> None:
        """Stochastic depth and dropout draw from torch's generator; it is set from the address of the draw."""
        torch.manual_seed(int(self._draws.at(step, self.rank, micro).words(1)[0] >> 1))

    def _addresses(self, step: int) -> str:
        units = self.data.units(step)
        shards = sorted({unit.shard for unit in units})
        first, last = (f"shard {u.shard}, rows {u.row_a} and {u.row_b}, view {u.view}" for u in (units[0], units[-1]))
        return f"its batch goes from {first} to {last}, over shards {shards}"


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


def _slice(batch: Batch, start: int, end: int) -> Batch:
    """Slots [start, end) of a batch."""
    return Batch(
        step=batch.step,
        views=batch.views[start:end],
        classes=batch.classes[start:end],
        mix=Mix(*(one[start // 2 : end // 2] for one in batch.mix)),
        decisions=batch.decisions[start:end],
        soft=batch.soft and batch.soft.map(lambda one: one[start:end]),
        kept=None if batch.kept is None else batch.kept[start:end],
    )
