"""The model that is measured: a run of the workspace, any timm model or the teacher, all through one code path.

A run is measured as it was trained: its network, its size and its classes are its own, whatever today's run file says.

Legend: B images of a batch, S side of a crop.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schemas.config import Member, RunFile
from schemas.errors import MismatchError
from schemas.names import RUN_PREFIX
from schemas.receipts import differences
from stages.data.image_set import ImageSet
from stages.evaluate.reports import PRECISION, USUAL_CROP, report_dir
from stages.models.classifier import Classifier, Heads, build, usual_crop, usual_size
from stages.models.precision import Precision
from stages.models.state_dict import load_weights
from stages.models.student import trained_student
from stages.models.teacher import Teacher
from stages.models.weights import find_weights, pretrained_weights, weights_digest
from stages.replay.mix import normalise
from stages.storage.run_files import FinishedRun, open_run, refuse_other_classes, warning_of_classes


class ModelRef(NamedTuple):
    """Names a model: a run of the workspace, a timm model, or, where both are empty, the run file's teacher."""

    run: str = ""
    member: Member | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model with its weights, in eval mode, on a device.

    Attributes:
        name: of the run, or of the model and its checkpoint.
        run: of the workspace; None = it is no run.
        steps: that the run took; None = it is no run.
        model: timm's name, or the teacher's title.
        extra: further arguments it was built with.
        image_size: S at which it is measured.
        usual_crop: the crop unless the run file sets one.
        weights_sha256: names its weights: of a run's file, else of all tensors.
        network: the model.
        untrained: heads of a distilled student that were never trained; they are not measured.
        why_untrained: `train.distillation` of the run that left them so.
        device: the device of its weights.
    """

    name: str
    run: str | None = None
    steps: int | None = None
    model: str
    extra: dict[str, Any]
    image_size: int
    usual_crop: float = USUAL_CROP
    weights_sha256: Any
    network: Classifier | Teacher
    untrained: tuple[str, ...] = ()
    why_untrained: str = ""
    device: torch.device

    @torch.inference_mode()
    def heads(self, views_BHWC: Tensor) -> Heads:
        """Logits of uint8 views [B, S, S, 3]."""
        network = self.network
        if isinstance(network, Teacher):
            return Heads(network.logits(views_BHWC, None), None)
        with Precision(PRECISION, self.device, "evaluate").switches(search=not network.transformer):
            found: Heads = network(normalise(views_BHWC.to(self.device), network.mean, network.std))
        return found

    @property
    def parameters(self) -> int:
        """How many it has."""
        networks = self.network.models if isinstance(self.network, Teacher) else [self.network]
        return sum(one.numel() for network in networks for one in network.parameters())

    @property
    def precision(self) -> str:
        """In which it computes."""
        return str(self.network.settings.precision) if isinstance(self.network, Teacher) else PRECISION

    @property
    def report_dir(self) -> str:
        """The folder of the workspace for results of it."""
        return report_dir(self.run, self.name, vars(self))

    def identity(self) -> dict[str, Any]:
        """All that determines its decisions, besides the images."""
        network = self.network
        if isinstance(network, Teacher):
            return network.identity() | {"image_size": self.image_size}
        return {
            "model": self.model,
            "extra": self.extra,
            "weights_sha256": self.weights_sha256,
            "untrained_heads": list(self.untrained),
            "image_size": self.image_size,
            "mean": list(network.mean),
            "std": list(network.std),
            "precision": PRECISION,
            "device": self.device.type,
        }


def own_crop(member: Member) -> float:
    """The crop at which timm evaluates a model, with its size, where no run of the workspace trained it; else 0."""
    return 0.0 if member.checkpoint.startswith(RUN_PREFIX) else usual_crop(member.model)


def at_own_crop(config: RunFile, member: Member | None) -> RunFile:
    """The run file with the crop at which a model is measured: timm's, if the run file gives neither size nor crop."""
    settings = config.evaluate
    if (
        member is None
        or settings.image_size
        or "crop_pct" in settings.model_fields_set
        or not (own := own_crop(member))
    ):
        return config
    return config.model_copy(update={"evaluate": settings.model_copy(update={"crop_pct": own})})


def open_evaluated_model(config: RunFile, ref: ModelRef, image_set: ImageSet, device: torch.device) -> EvaluatedModel:
    """Build a model for the classes of the images that it is measured on.

    Raises:
        UserError: if there is no such run or model, or its weights do not fit.
        MismatchError: if a run's network or classes are others.
    """
    if ref.run:
        return _run(config, open_run(config.workspace, ref.run), image_set, device)
    if ref.member:
        return _model(config, ref.member, image_set, device)
    size = config.evaluate.image_size or config.views.image_size
    for member in config.teacher.members:
        warning_of_classes("teacher.checkpoint", member.checkpoint, config.workspace, image_set.classes)
    teacher = Teacher(
        config.teacher, workspace=config.workspace, num_classes=len(image_set.classes), image_size=size, device=device
    )
    extra = config.teacher.extra
    return EvaluatedModel(
        name=_folder("teacher", config.teacher.title),
        model=config.teacher.title,
        extra=extra if isinstance(extra, dict) else {"members": list(extra)},
        image_size=size,
        weights_sha256=teacher.identity()["weights_sha256"],
        network=teacher,
        device=device,
    )


def _run(config: RunFile, finished: FinishedRun, image_set: ImageSet, device: torch.device) -> EvaluatedModel:
    refuse_other_classes(finished, image_set.classes)
    stored, weights = finished.config(config), finished.weights(config.evaluate.weights)
    size = config.evaluate.image_size or stored.image_size
    network = trained_student(stored, image_set, weights.path, size)
    return EvaluatedModel(
        name=finished.name,
        run=finished.name,
        steps=finished.manifest.steps,
        model=stored.student.model,
        extra=stored.student.extra,
        image_size=size,
        usual_crop=finished.trained_with().evaluate.crop_pct,
        weights_sha256=weights.sha256,
        network=network.eval().requires_grad_(False).to(device),
        untrained=stored.train.untrained_heads if network.distilled else (),
        why_untrained=stored.train.distillation,
        device=device,
    )


def _model(config: RunFile, member: Member, image_set: ImageSet, device: torch.device) -> EvaluatedModel:
    usual = usual_size(member.model)  # an unknown name is refused before its weights are looked for
    run, source = None, f"evaluate.model = {member.model}"
    if member.checkpoint:
        source = f"evaluate.checkpoint = {member.checkpoint}"
        weights = find_weights(member.checkpoint, config.workspace, "evaluate.checkpoint")
    else:
        weights = pretrained_weights(member.model, "evaluate.checkpoint")
    if member.checkpoint.startswith(RUN_PREFIX):
        finished = open_run(config.workspace, member.checkpoint.removeprefix(RUN_PREFIX))
        refuse_other_classes(finished, image_set.classes)
        run = finished.config(config)
        member = member._replace(extra=member.extra or _own_extra(run, member.model))
    size = config.evaluate.image_size or (run.image_size if run else usual)
    network = build(member.model, num_classes=len(image_set.classes), img_size=size, drop_path=0.0, extra=member.extra)
    load_weights(network, weights, source=source)
    if run:
        _refuse_other_network(source, run, member)
    stem = member.checkpoint.rstrip("/").rpartition("/")[2].rpartition(".")[0] or member.checkpoint
    return EvaluatedModel(
        name=_folder(member.model, stem),
        model=member.model,
        extra=member.extra,
        image_size=size,
        usual_crop=own_crop(member) or USUAL_CROP,
        weights_sha256=weights_digest(weights),
        network=network.eval().requires_grad_(False).to(device),
        untrained=run.train.untrained_heads if run and network.distilled else (),
        why_untrained=run.train.distillation if run else "",
        device=device,
    )


def _own_extra(config: RunFile, model: str) -> dict[str, Any]:
    """A run's own arguments for its own model; none for another, which its weights may not fit."""
    return config.student.extra if _architecture(model) == _architecture(config.student.model) else {}


def _refuse_other_network(source: str, config: RunFile, member: Member) -> None:
    """Raise MismatchError if weights fit a network that is not the one their run trained, such as of other heads."""
    own = {"model": _architecture(config.student.model), "extra": config.student.extra}
    if found := differences(own, {"model": _architecture(member.model), "extra": member.extra}, "evaluate"):
        raise MismatchError(
            f"{source}: the run trained another network ({'; '.join(found)}); name its own, or leave evaluate.extra out"
        )


def _architecture(model: str) -> str:
    return model.partition(".")[0]


def _folder(*parts: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, parts)))[:100]
