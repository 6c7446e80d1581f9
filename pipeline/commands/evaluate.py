"""Evaluating as a command runs it: whom to ask, about which images, and where the figures go.

Answers are parts like any others, one a block of images, so an evaluation is resumed, and spread over all devices
without an image asked twice:

    WORKSPACE/
      predictions/<who>.<images>-<what made them>/   block-000000.parquet  receipts/  plan.json  manifest.json
      runs/<run>/             evaluation.json, of the val split at the run's own size; evaluation-<what else>.json
      evaluations/<model>/    the same of models that are no run of the workspace

Every figure is counted from answers that are stored, and names their folder.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from pipeline.commands.source_notes import noted
from pipeline.execution.devices import compiled, device_count, device_line, run_device, settled
from pipeline.execution.progress import Progress
from pipeline.execution.ray_session import INLINE, LOCAL, Resources
from pipeline.execution.run_parts import make_missing
from pipeline.execution.stage_dir import open_stage, write_manifest
from pipeline.execution.worker import Job
from schemas.config import RunFile
from schemas.receipts import fingerprint
from stages.data.image_set import ImageSet, open_image_set
from stages.data.views import pixel_versions
from stages.evaluate.evaluated_model import EvaluatedModel, ModelRef, open_evaluated_model
from stages.evaluate.imagenet_real import real_labels, refuse_other_classes
from stages.evaluate.predictions import HEADS, BlockSpec, Predictions, Predictor, score
from stages.models.teacher import Teacher
from stages.storage.commit import put_json
from stages.storage.store import Store

Say = Callable[[str], None]


class ModelPredictions(NamedTuple):
    """A model's answers about a gallery: whose, the answers, and the folder of the workspace that holds them."""

    subject: EvaluatedModel
    found: Predictions
    folder: str


def evaluate(run: RunFile, say: Say) -> dict[str, Any]:
    """Measure the run file's trained model, or the models it names, on the val split or another source.

    Returns:
        The figures; of several models those of the first, with `others`.

    Raises:
        UserError: if there are no images, no run or no such model, or its weights do not fit.
        MismatchError: if classes are not those of the images, or of ImageNet where its labels are asked for.
    """
    run = compiled(settled(run))
    gallery = noted(open_image_set(run), run.evaluate.source)
    if run.evaluate.labels == "imagenet-real":
        refuse_other_classes(gallery.classes)
    wanted = [ModelRef(member=member) for member in run.evaluate.members] or [ModelRef(run=run.train.name)]
    results = [_measured(run, who, gallery, say) for who in wanted]
    return results[0] | ({"others": results[1:]} if len(results) > 1 else {})


def ask(run: RunFile, who: ModelRef, gallery: ImageSet, say: Say) -> ModelPredictions:
    """A model's answers about every image of a gallery; those that are stored already are taken from there.

    Raises:
        UserError: if the model cannot be had or does not fit, or an image cannot be read.
    """
    subject = open_evaluated_model(
        run, who, gallery, torch.device("cpu")
    )  # a wrong one is refused before anything is started
    device, settings = run_device(run), run.evaluate
    made_from = {
        "images": gallery.content,
        "classes": fingerprint(list(gallery.classes)),
        "subject": subject.identity() | {"device": device},
        "crop_pct": settings.crop_pct,
        "batch_size": settings.batch_size,
        "versions": pixel_versions(),
    }
    folder = f"predictions/{subject.name}.{gallery.title}-{fingerprint(made_from)[:12]}"
    store = Store(run.workspace).at(folder)
    specs = [BlockSpec(block) for block in range(len(gallery.rows))]
    begun = open_stage(store, made_from, pixel_versions(), "delete that folder")
    say(_devices(run, subject))
    workers, gpu = device_count(run), device == "cuda"
    seats = Resources(count=workers, cpus=1 + run.train.processes if gpu else 1, gpus=int(gpu))
    alone = run.cluster.address == LOCAL and workers == 1  # one worker of this machine needs no Ray
    cluster = run.cluster.model_copy(update={"address": INLINE}) if alone else run.cluster
    job = Job(begun, partial(Predictor, run, who, gallery, device), device=device)
    with Progress(f"evaluate {subject.name}", total=len(specs), unit="parts", rate_unit="images") as progress:
        receipts, _ = make_missing(job, specs, cluster=cluster, seats=seats, progress=progress)
    write_manifest(begun, receipts, stage="evaluate")
    return ModelPredictions(subject, Predictions.read(store, receipts), folder)


def _devices(run: RunFile, subject: EvaluatedModel) -> str:
    teacher = isinstance(subject.network, Teacher)
    return device_line(
        run,
        f"evaluate {subject.name}",
        precision=run.teacher.precision if teacher else "fp32",
        compiled=teacher and run.teacher.compile,
        batch=f"batches of {run.evaluate.batch_size}",
        workers=run.train.processes,
    )


def report_dir(subject: EvaluatedModel) -> str:
    """The folder of the workspace for figures about a subject."""
    return f"runs/{subject.run}" if subject.run else f"evaluations/{subject.name}"


def _measured(run: RunFile, who: ModelRef, gallery: ImageSet, say: Say) -> dict[str, Any]:
    asked, settings = ask(run, who, gallery, say), run.evaluate
    subject, found = asked.subject, asked.found
    real = settings.labels == "imagenet-real"
    truth = real_labels(found.names, gallery.classes) if real else [{int(own)} for own in found.classes]
    figures = score(found, truth)
    result = {
        "stage": "evaluate",
        "name": subject.name,
        "run": subject.run,
        "model": subject.model,
        "extra": subject.extra,
        "parameters": subject.parameters,
        "weights": settings.weights if subject.run else None,
        "model_sha256": subject.weights_sha256,
        "image_size": subject.image_size,
        "crop_pct": settings.crop_pct,
        "images": gallery.title,
        "class_folders": settings.class_folders,
        "labels": settings.labels,
        "not_scored": len(found.names) - figures["samples"],
        "split": gallery.content,
        "predictions": asked.folder,
    } | figures
    file = _file(run, gallery)
    put_json(Store(run.workspace).at(report_dir(subject)), file, result)
    for head in HEADS:
        if one := figures[head]:
            say(f"{subject.name} {head:13}  top-1 {one['top1']:.2%}  top-5 {one['top5']:.2%}")
    say(f"{figures['samples']} images, {result['not_scored']} without a label → {report_dir(subject)}/{file}")
    return result


def _file(run: RunFile, gallery: ImageSet) -> str:
    """What the figures are called: after what differs from the val split, its own classes and the usual size."""
    settings = run.evaluate
    parts = [
        gallery.title if settings.source else "",
        "real" if settings.labels == "imagenet-real" else "",
        f"{settings.image_size}px-crop{settings.crop_pct:g}" if settings.image_size else "",
    ]
    return "-".join(filter(None, ["evaluation", *parts])) + ".json"
