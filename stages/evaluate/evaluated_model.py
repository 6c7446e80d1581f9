"""Subject: who is measured, a run of the workspace, any timm model or the teacher, all through one code path.

Legend: B images of a batch, S side of a crop.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schemas.config import Member, RunFile
from schemas.errors import UserError
from stages.data.image_set import ImageSet
from stages.models.classifier import Classifier, Heads, build, usual_size
from stages.models.precision import Precision
from stages.models.state_dict import load_weights
from stages.models.student import trained_student
from stages.models.teacher import Teacher
from stages.models.weights import EMA_FILE, MODEL_FILE, find_weights, pretrained_weights, weights_digest, weights_sha256
from stages.replay.mix import normalise
from stages.storage.commit import read_manifest
from stages.storage.run_files import stored_run
from stages.storage.store import Store
from stages.storage.validations import best_weights


class ModelRef(NamedTuple):
    """Names a subject: a run of the workspace, a timm model, or, where both are empty, the run file's teacher."""

    run: str = ""
    member: Member | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model with its weights, in eval mode, on a device.

    Attributes:
        name: of the run, or of the model and its checkpoint; a folder's name.
        run: of the workspace; None = it is no run.
        model: timm's name, or the teacher's title.
        extra: further arguments it was built with.
        image_size: S at which it is measured.
        weights_sha256: names its weights: of a run's file, else of all tensors.
        network: the model.
        device: where it lies.
    """

    name: str
    run: str | None
    model: str
    extra: dict[str, Any]
    image_size: int
    weights_sha256: Any
    network: Classifier | Teacher
    device: torch.device

    @torch.inference_mode()
    def heads(self, views_BHWC: Tensor) -> Heads:
        """Logits of uint8 views [B, S, S, 3]."""
        network = self.network
        if isinstance(network, Teacher):
            return Heads(network.logits(views_BHWC, None), None)
        with Precision("fp32", self.device, "evaluate").switches(search=not network.transformer):
            found: Heads = network(normalise(views_BHWC.to(self.device), network.mean, network.std))
        return found

    @property
    def parameters(self) -> int:
        """How many it has."""
        networks = self.network.models if isinstance(self.network, Teacher) else [self.network]
        return sum(one.numel() for network in networks for one in network.parameters())

    def identity(self) -> dict[str, Any]:
        """All that determines its decisions, besides the images."""
        who = {"model": self.model, "weights_sha256": self.weights_sha256, "image_size": self.image_size}
        return who | {"device": self.device.type}


def open_evaluated_model(run: RunFile, who: ModelRef, gallery: ImageSet, device: torch.device) -> EvaluatedModel:
    """Build a subject for the classes of the images that it is measured on.

    Raises:
        UserError: if there is no such run or model, or its weights do not fit.
    """
    if who.run:
        return _run(as_trained(run, who.run), gallery, device)
    if who.member:
        return _model(run, who.member, gallery, device)
    size = run.evaluate.image_size or run.views.image_size
    teacher = Teacher(
        run.teacher, workspace=run.workspace, num_classes=len(gallery.classes), image_size=size, device=device
    )
    return EvaluatedModel(
        name=_folder("teacher", run.teacher.title),
        run=None,
        model=run.teacher.title,
        extra={},
        image_size=size,
        weights_sha256=teacher.identity()["weights_sha256"],
        network=teacher,
        device=device,
    )


def as_trained(run: RunFile, name: str) -> RunFile:
    """The run file as it is for its own run; for another, the one that was stored with it, evaluated as today's says.

    Raises:
        UserError: if there is no such run.
    """
    if name == run.train.name:
        return run
    return stored_run(run, name)


def run_weights(run: RunFile) -> tuple[str, str | None]:
    """The file below a run's folder that `evaluate.weights` names, and its sha256; None where no manifest has it.

    Raises:
        UserError: if it names the best weights, and none were validated.
    """
    store = Store(run.workspace).at(f"runs/{run.train.name}")
    if run.evaluate.weights == "best":
        best = best_weights(store)
        return best.file, best.sha256
    file = MODEL_FILE if run.evaluate.weights == "model" else EMA_FILE
    return file, weights_sha256(read_manifest(store), file)


def _run(run: RunFile, gallery: ImageSet, device: torch.device) -> EvaluatedModel:
    store, (file, sha256) = Store(run.workspace).at(f"runs/{run.train.name}"), run_weights(run)
    if not store.exists(file):
        raise UserError(f"{store.name(file)}: is missing; run `deit-pipeline train` first")
    size = run.evaluate.image_size or run.student.img_size or run.views.image_size
    if size != run.student.img_size:
        run = run.model_copy(update={"student": run.student.model_copy(update={"img_size": size})})
    network = trained_student(run, gallery, file)
    return EvaluatedModel(
        name=run.train.name,
        run=run.train.name,
        model=run.student.model,
        extra=run.student.extra,
        image_size=size,
        weights_sha256=sha256 or weights_digest(network.model.state_dict()),
        network=network.eval().requires_grad_(False).to(device),
        device=device,
    )


def _model(run: RunFile, member: Member, gallery: ImageSet, device: torch.device) -> EvaluatedModel:
    size = run.evaluate.image_size or usual_size(member.model)
    network = build(member.model, num_classes=len(gallery.classes), img_size=size, drop_path=0.0, extra=member.extra)
    if member.checkpoint:
        source = f"evaluate.checkpoint = {member.checkpoint}"
        weights = find_weights(member.checkpoint, run.workspace, "evaluate.checkpoint")
    else:
        source = f"evaluate.model = {member.model}"
        weights = pretrained_weights(member.model, "evaluate.checkpoint")
    load_weights(network, weights, source=source)
    stem = member.checkpoint.rstrip("/").rpartition("/")[2].rpartition(".")[0] or member.checkpoint
    return EvaluatedModel(
        name=_folder(member.model, stem),
        run=None,
        model=member.model,
        extra=member.extra,
        image_size=size,
        weights_sha256=weights_digest(weights),
        network=network.eval().requires_grad_(False).to(device),
        device=device,
    )


def _folder(*parts: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, parts)))[:100]
