"""Trainer: all that one process of a training holds, with no teacher in memory; `stages/train/loop.py` drives it.

Step s sees the s-th batch of the run's stream, its learning rate is a function of s, and the randomness inside the
model is drawn from (seed, s, rank): so a training is its checkpoint and its step, and nothing else has to be
restored. One code path serves one process and many; many are joined by whoever starts them.

Legend: B views of a local batch, K classes.
"""

import contextlib
import os
import sys
import time
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
from stages.models.classifier import Heads
from stages.models.flops import TRAINING, forward_flops, peak_flops
from stages.models.from_views import FromViews
from stages.models.precision import Precision, chosen_precision
from stages.models.student import new_student
from stages.models.tensors import to_bytes
from stages.models.weights import EMA_FILE, MODEL_FILE
from stages.replay.draws import Draws, Purpose
from stages.storage.commit import MANIFEST, refuse_other_plan
from stages.storage.hours import Hours
from stages.storage.store import Store
from stages.train.checkpoint import Checkpoint, drop_checkpoints, newest_checkpoint, save_checkpoint
from stages.train.dataset import Batch
from stages.train.hand_out import hand_out
from stages.train.metrics import Metrics
from stages.train.objective import loss_terms
from stages.train.optim import (
    SCALE_PREFIX,
    build_optimizer,
    learning_rate,
    scale_to_tensors,
    state_to_tensors,
    tensors_to_scale,
    tensors_to_state,
)
from stages.train.plan import Plan
from stages.train.tracking import open_trackers
from stages.train.validation import Asked, Validator


class Trainer:
    """Model, optimiser, moving average and meters of one process; `step` by `step`."""

    def __init__(self, config: RunFile, plan: Plan, *, rank: int, world: int, device: torch.device) -> None:
        self.config, self.plan, self.rank, self.world, self.device = config, plan, rank, world, device
        self._since = time.perf_counter()
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
        # Statistics of a batch, which are a rank's own, want its images to be different ones.
        spread = any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in self.classifier.modules())
        self.data = plan.dataset(config, rank=rank, world=world, spread=spread)
        peak = peak_flops(device)
        self.metrics = Metrics(
            self.store,
            self.made_by,
            config.train.log_every,
            rank=rank,
            world=world,
            device=device,
            views_at_peak=peak and peak / (TRAINING * forward_flops(self.classifier, config.views.image_size, device)),
        )
        self.validator = Validator(config, plan, self.store, rank=rank, world=world, device=device)
        self.trackers = open_trackers(config, plan, self.store, rank=rank)
        self._hours = Hours(self.store, device.type)
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
        tensors_to_scale(self.scaler, {name: state.pop(name) for name in list(state) if name.startswith(SCALE_PREFIX)})
        tensors_to_state(self.optimizer, self.classifier.model, state)
        self.metrics.restore(found.step, meters, found.lines)
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
            part = batch.slots(start, min(start + size, count))
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
            state=state_to_tensors(self.optimizer, self.classifier.model) | scale_to_tensors(self.scaler) | sums,
            lines=self.metrics.lines(),
        )
        best = self.validator.best_step()
        save_checkpoint(self.store, checkpoint, self.made_by, self.config.train.keep_checkpoints, best)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps: those that are validated are among them."""
        return step % self.checkpoint_every == 0 or step == self.plan.steps or self.validator.due(step)

    def validate(self, step: int, asked: Asked) -> bool:
        """Validate the newest checkpoint where that is due; False if an end was asked for meanwhile."""
        with self.metrics.paused():
            whole = self.validator.validate(step, self.classifier, self.ema, asked)
        if self.rank == 0 and whole and self.validator.due(step):
            drop_checkpoints(self.store, self.made_by, self.config.train.keep_checkpoints, self.validator.best_step())
        return whole

    def show(self) -> None:
        """Put the metrics of the newest checkpoint, and of all validations, for people and trackers to read."""
        if self.rank == 0:
            self.trackers.offer(self.metrics.show([one.line for one in self.validator.done.values()]))

    def note_hours(self, step: int) -> None:
        """Take down what the steps since the last checkpoint took, its validation included."""
        now = time.perf_counter()
        if self.rank == 0:
            self._hours.add(f"step-{step:09d}", now - self._since, self.world)
        self._since = now

    def news(self, validating: float | None = None) -> dict[str, Any]:
        """What the progress line says: of the newest line of metrics, and of the newest validation."""
        share = {} if validating is None else {"validating": validating}
        return self.metrics.last | self.validator.note() | share

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
            classes=fingerprint(list(self.plan.split.classes)),
            parts=(ManifestPart(part="model", rows=self.plan.steps, files=tuple(files)),),
        )
        self.store.put(MANIFEST, manifest.to_json())

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        heads: Heads = self._forward(*self._student.given(batch.views, batch.mix))
        return loss_terms(heads, batch, self.config.train)

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
