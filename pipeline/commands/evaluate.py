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

    evaluated: EvaluatedModel
    predictions: Predictions
    folder: str


def evaluate(config: RunFile, say: Say) -> dict[str, Any]:
    """Measure the run file's trained model, or the models it names, on the val split or another source.

    Returns:
        The figures; of several models those of the first, with `others`.

    Raises:
        UserError: if there are no images, no run or no such model, or its weights do not fit.
        MismatchError: if classes are not those of the images, or of ImageNet where its labels are asked for.
    """
    config = compiled(settled(config))
    image_set = noted(open_image_set(config), config.evaluate.source)
    if config.evaluate.labels == "imagenet-real":
        refuse_other_classes(image_set.classes)
    wanted = [ModelRef(member=member) for member in config.evaluate.members] or [ModelRef(run=config.train.name)]
    results = [_measured(config, ref, image_set, say) for ref in wanted]
    return results[0] | ({"others": results[1:]} if len(results) > 1 else {})


def predict_images(config: RunFile, ref: ModelRef, image_set: ImageSet, say: Say) -> ModelPredictions:
    """A model's answers about every image of a gallery; those that are stored already are taken from there.

    Raises:
        UserError: if the model cannot be had or does not fit, or an image cannot be read.
    """
    evaluated = open_evaluated_model(
        config, ref, image_set, torch.device("cpu")
    )  # a wrong one is refused before anything is started
    device, settings = run_device(config), config.evaluate
    made_from = {
        "images": image_set.content,
        "classes": fingerprint(list(image_set.classes)),
        "subject": evaluated.identity() | {"device": device},
        "crop_pct": settings.crop_pct,
        "batch_size": settings.batch_size,
        "versions": pixel_versions(),
    }
    folder = f"predictions/{evaluated.name}.{image_set.title}-{fingerprint(made_from)[:12]}"
    store = Store(config.workspace).child(folder)
    specs = [BlockSpec(block) for block in range(len(image_set.rows))]
    stage_dir = open_stage(store, made_from, pixel_versions(), "delete that folder")
    say(_devices(config, evaluated))
    workers, gpu = device_count(config), device == "cuda"
    resources = Resources(count=workers, cpus=1 + config.train.processes if gpu else 1, gpus=int(gpu))
    alone = config.cluster.address == LOCAL and workers == 1  # one worker of this machine needs no Ray
    cluster = config.cluster.model_copy(update={"address": INLINE}) if alone else config.cluster
    job = Job(stage_dir, partial(Predictor, config, ref, image_set, device))
    with Progress(f"evaluate {evaluated.name}", total=len(specs), unit="parts", rate_unit="images") as progress:
        receipts, _ = make_missing(job, specs, cluster=cluster, resources=resources, progress=progress)
    write_manifest(stage_dir, receipts, stage="evaluate")
    return ModelPredictions(evaluated, Predictions.read(store, receipts), folder)


def _devices(config: RunFile, evaluated: EvaluatedModel) -> str:
    teacher = isinstance(evaluated.network, Teacher)
    return device_line(
        config,
        f"evaluate {evaluated.name}",
        precision=config.teacher.precision if teacher else "fp32",
        compiled=teacher and config.teacher.compile,
        batch=f"batches of {config.evaluate.batch_size}",
        workers=config.train.processes,
    )


def report_dir(evaluated: EvaluatedModel) -> str:
    """The folder of the workspace for figures about a evaluated."""
    return f"runs/{evaluated.run}" if evaluated.run else f"evaluations/{evaluated.name}"


def _measured(config: RunFile, ref: ModelRef, image_set: ImageSet, say: Say) -> dict[str, Any]:
    asked, settings = predict_images(config, ref, image_set, say), config.evaluate
    evaluated, found = asked.evaluated, asked.predictions
    real = settings.labels == "imagenet-real"
    truth = real_labels(found.names, image_set.classes) if real else [{int(own)} for own in found.classes]
    figures = score(found, truth)
    result = {
        "stage": "evaluate",
        "name": evaluated.name,
        "run": evaluated.run,
        "model": evaluated.model,
        "extra": evaluated.extra,
        "parameters": evaluated.parameters,
        "weights": settings.weights if evaluated.run else None,
        "model_sha256": evaluated.weights_sha256,
        "image_size": evaluated.image_size,
        "crop_pct": settings.crop_pct,
        "images": image_set.title,
        "class_folders": settings.class_folders,
        "labels": settings.labels,
        "not_scored": len(found.names) - figures["samples"],
        "split": image_set.content,
        "predictions": asked.folder,
    } | figures
    file = _file(config, image_set)
    put_json(Store(config.workspace).child(report_dir(evaluated)), file, result)
    for head in HEADS:
        if one := figures[head]:
            say(f"{evaluated.name} {head:13}  top-1 {one['top1']:.2%}  top-5 {one['top5']:.2%}")
    say(f"{figures['samples']} images, {result['not_scored']} without a label → {report_dir(evaluated)}/{file}")
    return result


def _file(config: RunFile, image_set: ImageSet) -> str:
    """What the figures are called: after what differs from the val split, its own classes and the usual size."""
    settings = config.evaluate
    parts = [
        image_set.title if settings.source else "",
        "real" if settings.labels == "imagenet-real" else "",
        f"{settings.image_size}px-crop{settings.crop_pct:g}" if settings.image_size else "",
    ]
    return "-".join(filter(None, ["evaluation", *parts])) + ".json"
