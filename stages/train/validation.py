"""Validation while a model trains: the evaluation's own code and crops, asked of copies of the weights.

A checkpoint is validated after it is committed, and what it reached is put beside it, so that no byte of a checkpoint
depends on validating. A copy of the network is asked, in eval mode: no mode, buffer, gradient or generator of the
training's can change. Where a kill left a checkpoint without its validation, the resumed run begins with that.

Many ranks deal batches of images between them, and all leave off after the same one when an end is asked for. Rejected:
rank 0 alone, for whom the others would wait through the whole split.

Legend: B images of a batch, N batches of all ranks.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3

from schemas.config import RunFile
from schemas.errors import UserError
from stages.data.center_crop import Crops, batches_of, crops_of
from stages.data.image_set import ImageSet, open_image_set
from stages.evaluate.evaluated_model import EvaluatedModel
from stages.evaluate.predictions import Predictions, count_hits, predict
from stages.evaluate.reports import HEADS
from stages.models.classifier import Classifier
from stages.storage.store import Store
from stages.storage.validations import (
    Validation,
    best_of,
    figure_name,
    put_validation,
    read_validations,
)
from stages.train.checkpoint import stored_weights
from stages.train.plan import Plan
from stages.train.stop_sync import StopSync

Asked = Callable[[float], bool]
"""Told, on rank 0, which share of a validation is done; whether the user wants an end."""
_FIGURES = ("top1", "top5")


def validation_images(config: RunFile) -> ImageSet:
    """The val split, whatever source `[evaluate]` names.

    Raises:
        UserError: if there is none.
        MismatchError: if its classes are not those of the train split.
    """
    if not Store(config.workspace).exists("shards/val/manifest.json"):
        raise UserError(
            "train.validate_every: there is no val split; set source.val and run `deit-pipeline shard`, or set "
            "train.validate_every = 0"
        )
    plain = {"source": "", "source_labels": "", "class_folders": "names"}
    return open_image_set(config.model_copy(update={"evaluate": config.evaluate.model_copy(update=plain)}))


@dataclass(frozen=True)
class _Pass:
    """One walk over images: every so many-th of each shard, in batches that are cut as the evaluation cuts them."""

    full: bool
    batches: list[tuple[int, range]]

    @property
    def images(self) -> int:
        return sum(len(rows) for _, rows in self.batches)


class Validator:
    """Validates a training's checkpoints; the same on all ranks.

    Args:
        config: the run file.
        plan: of the training.
        store: of the run's folder.
        rank: of this process.
        world: number of processes, which deal the images between them.
        device: of this process.

    Attributes:
        done: validations so far, by step; on rank 0.
    """

    def __init__(
        self, config: RunFile, plan: Plan, store: Store, *, rank: int, world: int, device: torch.device
    ) -> None:
        self._config, self._plan, self._store = config, plan, store
        self._rank, self._world, self._device = rank, world, device
        self._every = config.train.epochs_between_validations * plan.steps_per_epoch
        self._images = validation_images(config) if self._every else None
        found = read_validations(store, _warn) if rank == 0 else []
        self.done = {one.step: one for one in found}

    def due(self, step: int) -> bool:
        """Whether the weights after `step` steps are to be validated."""
        return bool(self._every and step) and (step % self._every == 0 or step == self._plan.steps)

    def missing(self, step: int) -> bool:
        """Whether a validation that is due is not there, or is of other weights; for rank 0, which knows."""
        done = self.done.get(step)
        return self.due(step) and (done is None or done.weights.items() != self._weights(step).items())

    def best_step(self) -> int | None:
        """The step of the best weights so far."""
        best = best_of(list(self.done.values()))
        return best.step if best else None

    def note(self) -> dict[str, Any]:
        """What the progress line says of the newest validation; empty before the first."""
        if not self.done:
            return {}
        newest = self.done[max(self.done)]
        return {"val_top1": max(newest.top1(kind) for kind in newest.weights), "val_step": newest.step}

    def validate(self, step: int, classifier: Classifier, ema: ModelEmaV3 | None, asked: Asked) -> bool:
        """Validate the checkpoint of `step`, if that is due and not done; every rank calls it.

        Args:
            step: of the newest checkpoint.
            classifier: the network with that checkpoint's weights, which is left as it is.
            ema: the moving average of its weights.
            asked: called between batches on rank 0.

        Returns:
            False if an end was asked for, and nothing is put.

        Raises:
            UserError: if an image cannot be read.
        """
        if not self._agreed(self._rank == 0 and self.missing(step)) or self._images is None:
            return True
        models = {"model": self._copy(classifier, None)} | ({"ema": self._copy(classifier, ema)} if ema else {})
        figures: dict[str, float | int] = {}
        for walk in self._passes(step):
            found = self._walk(walk, models, asked)
            if found is None:
                return False
            figures |= found
        if self._rank == 0:
            done = Validation(
                step=step,
                epoch=(step - 1) // self._plan.steps_per_epoch,
                measured_on=self._measured_on(),
                head="fused" if "fused" in self._heads(classifier) else self._heads(classifier)[0],
                weights=self._weights(step),
                figures=figures,
            )
            put_validation(self._store, done)
            self.done[step] = done
        return True

    def _agreed(self, word: bool) -> bool:
        """What rank 0 says."""
        if self._world == 1:
            return word
        told = torch.tensor(int(word), device=self._device)
        dist.broadcast(told, src=0)
        return bool(told.item())

    def _weights(self, step: int) -> dict[str, tuple[str, str]]:
        found = stored_weights(self._store, step)
        return {kind: found[kind] for kind in found if kind == "model" or self._config.train.ema_decay}

    def _heads(self, classifier: Classifier) -> tuple[str, ...]:
        """The heads that are trained."""
        untrained = self._untrained(classifier)
        if not classifier.distilled:
            return ("class",)
        if untrained:
            return ("distillation",) if "class" in untrained else ("class",)
        return HEADS

    def _untrained(self, classifier: Classifier) -> tuple[str, ...]:
        return self._config.train.untrained_heads if classifier.distilled else ()

    def _copy(self, classifier: Classifier, ema: ModelEmaV3 | None) -> EvaluatedModel:
        """A copy of the network, with its own weights or their moving average."""
        network = copy.deepcopy(classifier)
        if ema:
            network.model.load_state_dict(ema.module.state_dict())
        return EvaluatedModel(
            name=self._config.train.name,
            run=self._config.train.name,
            model=self._config.student.model,
            extra=self._config.student.extra,
            image_size=self._config.image_size,
            weights_sha256=None,
            network=network.eval().requires_grad_(False),
            untrained=self._untrained(classifier),
            device=self._device,
        )

    def _stride(self) -> int:
        count, wanted = sum(self._images.rows) if self._images else 0, self._config.train.validate_images
        return -(-count // wanted) if wanted else 1

    def _passes(self, step: int) -> Iterator[_Pass]:
        """The images that every validation sees; at the end of the training all of them as well."""
        yield self._pass(self._stride(), full=False)
        if step == self._plan.steps and self._stride() > 1:
            yield self._pass(1, full=True)

    def _pass(self, stride: int, *, full: bool) -> _Pass:
        rows = self._images.rows if self._images else ()
        size = self._config.evaluate.batch_size
        return _Pass(
            full, [(block, one) for block, count in enumerate(rows) for one in batches_of(count, size, stride)]
        )

    def _measured_on(self) -> dict[str, Any]:
        return {
            "split": self._images.content if self._images else None,
            "images": self._pass(self._stride(), full=False).images,
            "crop_pct": self._config.evaluate.crop_pct,
            "image_size": self._config.image_size,
        }

    def _walk(self, walk: _Pass, models: dict[str, EvaluatedModel], asked: Asked) -> dict[str, float | int] | None:
        """Figures of one pass over images, on every rank; None if an end was asked for."""
        heads = self._heads(next(iter(models.values())).network)  # type: ignore[arg-type]
        crops = self._crops(walk)
        ending = StopSync(0, world=self._world, device=self._device)
        hits = torch.zeros(len(models), len(heads), len(_FIGURES), dtype=torch.int64)
        rounds = -(-len(walk.batches) // self._world)
        for nth in range(rounds):
            if ending.should_stop(nth, self._rank == 0 and asked(nth / rounds)):
                return None
            for batch in islice(crops, 1):  # none, where the last batches are fewer than ranks
                hits += torch.tensor([_hits(model, batch, heads) for model in models.values()])
        hits = hits.to(self._device)
        if self._world > 1:
            dist.all_reduce(hits)
        images = walk.images
        figures: dict[str, float | int] = {f"val_{'full_' if walk.full else ''}images": images}
        for kind, of_kind in zip(models, hits.tolist(), strict=True):
            for head, of_head in zip(heads, of_kind, strict=True):
                for figure, right in zip(_FIGURES, of_head, strict=True):
                    figures[figure_name(kind, head, figure, full=walk.full)] = right / images
        return figures

    def _crops(self, walk: _Pass) -> Iterator[Crops]:
        """This rank's batches."""
        assert self._images is not None
        return crops_of(
            self._images,
            walk.batches[self._rank :: self._world],
            image_size=self._config.image_size,
            crop_pct=self._config.evaluate.crop_pct,
            threads=self._config.train.processes,
        )


def _hits(model: EvaluatedModel, batch: Crops, heads: tuple[str, ...]) -> list[tuple[int, int]]:
    """How many images of a batch each head names right, at rank 1 and among five."""
    found = Predictions.of(predict(model.heads, [batch], model.untrained))
    _, hits = count_hits(found, [{int(own)} for own in found.classes])
    return [hits[head] for head in heads]


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
