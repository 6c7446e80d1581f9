"""Evaluating as a command runs it: whom to ask, about which images, and where the figures go.

Answers are parts like any others, one a block of images, so an evaluation is resumed, and spread over all devices
without an image asked twice:

    WORKSPACE/
      predictions/<model>.<images>-<what made them>/   block-000000.parquet  receipts/  plan.json  manifest.json
      runs/<run>/                       evaluation.json, of the val split at the run's own size and crop;
                                        evaluation-<what else>.json
      evaluations/<model>-<weights>/    the same of models that are no run of the workspace

Every figure is counted from answers that are stored, and names their folder and everything that made them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm
import torch

from pipeline.commands.source_notes import noted
from pipeline.execution.devices import compiled, device_count, device_line, run_device, settled
from pipeline.execution.progress import Progress
from pipeline.execution.ray_session import INLINE, LOCAL, Resources
from pipeline.execution.run_parts import make_missing
from pipeline.execution.stage_dir import open_stage, write_manifest
from pipeline.execution.worker import Job
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.manifests import PredictionsManifest
from schemas.receipts import fingerprint, read_json
from stages.data.image_set import ImageSet, open_image_set
from stages.data.views import pixel_versions
from stages.evaluate.evaluated_model import EvaluatedModel, ModelRef, open_evaluated_model
from stages.evaluate.imagenet_real import real_labels, refuse_other_classes
from stages.evaluate.predictions import BlockSpec, Predictions, Predictor, score
from stages.evaluate.reports import HEADS, outdated, report_file, untrained_line
from stages.models.teacher import Teacher
from stages.storage.commit import put_json
from stages.storage.store import Store

Say = Callable[[str], None]


class ModelPredictions(NamedTuple):
    """A model's predictions for a set of images: whose, what, and the folder of the workspace that holds them."""

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
    """A model's predictions for every image of a set; those that are stored already are taken from there.

    Raises:
        UserError: if the model cannot be had or does not fit, or an image cannot be read.
        MismatchError: if a run's network or classes are others.
    """
    subject = open_evaluated_model(
        run, who, gallery, torch.device("cpu")
    )  # a wrong one is refused before anything is started
    device, made_from = run_device(run), all_that_made(run, subject, gallery)
    folder = f"predictions/{subject.name}.{gallery.title}-{fingerprint(made_from)[:12]}"
    store = Store(run.workspace).at(folder)
    specs = [BlockSpec(block) for block in range(len(gallery.rows))]
    begun = open_stage(store, made_from, made_from["versions"], "delete that folder")
    say(_devices(run, subject))
    workers, gpu = device_count(run), device == "cuda"
    seats = Resources(count=workers, cpus=1 + run.train.processes if gpu else 1, gpus=int(gpu))
    alone = run.cluster.address == LOCAL and workers == 1  # one worker of this machine needs no Ray
    cluster = run.cluster.model_copy(update={"address": INLINE}) if alone else run.cluster
    job = Job(begun, partial(Predictor, run, who, gallery, device))
    with Progress(f"evaluate {subject.name}", total=len(specs), unit="parts", rate_unit="images") as progress:
        receipts, _ = make_missing(job, specs, cluster=cluster, seats=seats, progress=progress)
    write_manifest(begun, PredictionsManifest, receipts, stage="evaluate")
    return ModelPredictions(subject, Predictions.read(store, receipts), folder)


def all_that_made(run: RunFile, subject: EvaluatedModel, gallery: ImageSet) -> dict[str, Any]:
    """All that determines a model's predictions for a set of images."""
    return {
        "images": gallery.content,
        "classes": fingerprint(list(gallery.classes)),
        "subject": subject.identity() | {"device": run_device(run)},
        "crop_pct": run.evaluate.crop_pct,
        "batch_size": run.evaluate.batch_size,
        "versions": pixel_versions() | {"timm": timm.__version__},
    }


def _devices(run: RunFile, subject: EvaluatedModel) -> str:
    return device_line(
        run,
        f"evaluate {subject.name}",
        precision=subject.precision,
        compiled=isinstance(subject.network, Teacher) and run.teacher.compile,
        batch=f"batches of {run.evaluate.batch_size}",
        workers=run.train.processes,
    )


def about(run: RunFile, gallery: ImageSet, subject: EvaluatedModel) -> dict[str, Any]:
    """What every result says of whom and what it measured, and how."""
    settings = run.evaluate
    return {
        "name": subject.name,
        "run": subject.run,
        "steps": subject.steps,
        "model": subject.model,
        "extra": subject.extra,
        "parameters": subject.parameters,
        "weights": settings.weights if subject.run else None,
        "model_sha256": subject.weights_sha256,
        "untrained_heads": list(subject.untrained),
        "image_size": subject.image_size,
        "crop_pct": settings.crop_pct,
        "precision": subject.precision,
        "images": gallery.title,
        "class_folders": settings.class_folders,
        "labels": settings.labels,
        "split": gallery.content,
        "made_from": all_that_made(run, subject, gallery),
    }


def _measured(run: RunFile, who: ModelRef, gallery: ImageSet, say: Say) -> dict[str, Any]:
    asked, settings = ask(run, who, gallery, say), run.evaluate
    subject, found = asked.subject, asked.found
    real = settings.labels == "imagenet-real"
    truth = real_labels(found.names, gallery.classes) if real else [{int(own)} for own in found.classes]
    figures = score(found, truth)
    result = {"stage": "evaluate"} | about(run, gallery, subject)
    result |= {"predictions": asked.folder, "not_scored": len(found.names) - figures["samples"]} | figures
    file = report_file("evaluation", settings, gallery.title, subject.usual_crop)
    store = Store(run.workspace).at(subject.report_dir)
    _say_why_again(store, file, result, say)
    put_json(store, file, result)
    for head in HEADS:
        if one := figures[head]:
            say(f"{subject.name} {head:13}  top-1 {one['top1']:.2%}  top-5 {one['top5']:.2%}")
    if subject.untrained:
        say(f"{subject.name}: {untrained_line(subject.untrained, subject.why_untrained)}; it is not measured")
    say(f"{figures['samples']} images, {result['not_scored']} without a label → {subject.report_dir}/{file}")
    return result


def _say_why_again(store: Store, file: str, result: dict[str, Any], say: Say) -> None:
    """Say why a result that is there is not taken, where it is of something else than the new one."""
    if not store.exists(file):
        return
    try:
        found = read_json(store.read(file), store.name(file))
    except UserError:
        say(f"{store.name(file)}: is damaged, and replaced")
        return
    wanted = {key: value for key, value in result.items() if key not in (*HEADS, "samples", "not_scored", "made_from")}
    if why := outdated(found, wanted):
        say(f"{store.name(file)}: is replaced ({why})")
