"""Evaluating as a command runs it: which model, which images, and where the figures are stored.

Answers are parts like any others, one a block of images, so an evaluation is resumed, and spread over all devices
without predicting an image twice:

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

from pipeline.commands.reports import put_report
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
from stages.evaluate.evaluated_model import EvaluatedModel, ModelRef, at_own_crop, open_evaluated_model
from stages.evaluate.imagenet_real import real_labels, refuse_other_classes
from stages.evaluate.predictions import BlockSpec, Predictions, Predictor, score
from stages.evaluate.reports import HEADS, outdated, report_file, untrained_line
from stages.models.teacher import Teacher
from stages.storage.store import Store

Say = Callable[[str], None]


class ModelPredictions(NamedTuple):
    """A model's predictions for a set of images: whose, what, and the folder of the workspace that holds them."""

    evaluated: EvaluatedModel
    predictions: Predictions
    folder: str


def evaluate(config: RunFile, say: Say) -> dict[str, Any]:
    """Measure the run file's trained model, or the models it names, on the val split or another source.

    Returns:
        The figures; of several models those of the first, with `others`.

    Raises:
        UserError: if there are no images, no run or no such model, or its weights do not fit.
        MismatchError: if classes are not those of the images, or of ImageNet where its labels are used.
    """
    config = compiled(settled(config))
    image_set = noted(open_image_set(config), config.evaluate.source)
    if config.evaluate.labels == "imagenet-real":
        refuse_other_classes(image_set.classes)
    results = [_measured(own, ref, image_set, say) for own, ref in wanted_models(config)]
    return results[0] | ({"others": results[1:]} if len(results) > 1 else {})


def wanted_models(config: RunFile) -> list[tuple[RunFile, ModelRef]]:
    """The models that the run file names, else its student; each with the run file at whose crop it is measured."""
    refs = [ModelRef(member=member) for member in config.evaluate.members] or [ModelRef(run=config.train.name)]
    return [(at_own_crop(config, ref.member), ref) for ref in refs]


def predictions_folder(evaluated: EvaluatedModel, image_set: ImageSet, made_from: dict[str, Any]) -> str:
    """Where a model's predictions for a set of images are, by all that determines them."""
    return f"predictions/{evaluated.name}.{image_set.title}-{fingerprint(made_from)[:12]}"


def predict_images(config: RunFile, ref: ModelRef, image_set: ImageSet, say: Say) -> ModelPredictions:
    """A model's predictions for every image of a set; those that are stored already are taken from there.

    Raises:
        UserError: if the model cannot be had or does not fit, or an image cannot be read.
        MismatchError: if a run's network or classes are others.
    """
    evaluated = open_evaluated_model(
        config, ref, image_set, torch.device("cpu")
    )  # a wrong one is refused before anything is started
    device, made_from = run_device(config), all_that_made(config, evaluated, image_set)
    folder = predictions_folder(evaluated, image_set, made_from)
    store = Store(config.workspace).child(folder)
    specs = [BlockSpec(block) for block in range(len(image_set.rows))]
    stage_dir = open_stage(store, made_from, made_from["versions"], "delete that folder")
    say(_devices(config, evaluated))
    crop = config.evaluate.crop_pct
    say(f"evaluate {evaluated.name}: centre crops of {evaluated.image_size} pixels at crop_pct {crop:g}")
    workers, gpu = device_count(config), device == "cuda"
    resources = Resources(count=workers, cpus=1 + config.train.processes if gpu else 1, gpus=int(gpu))
    alone = config.cluster.address == LOCAL and workers == 1  # one worker of this machine needs no Ray
    cluster = config.cluster.model_copy(update={"address": INLINE}) if alone else config.cluster
    job = Job(stage_dir, partial(Predictor, config, ref, image_set, device), device=device)
    with Progress(f"evaluate {evaluated.name}", total=len(specs), unit="parts", rate_unit="images") as progress:
        receipts, _ = make_missing(job, specs, cluster=cluster, resources=resources, progress=progress)
    write_manifest(stage_dir, PredictionsManifest, receipts, stage="evaluate")
    return ModelPredictions(evaluated, Predictions.read(store, receipts), folder)


def all_that_made(config: RunFile, evaluated: EvaluatedModel, image_set: ImageSet) -> dict[str, Any]:
    """All that determines a model's predictions for a set of images."""
    return {
        "images": image_set.content,
        "classes": fingerprint(list(image_set.classes)),
        "subject": evaluated.identity() | {"device": run_device(config)},
        "crop_pct": config.evaluate.crop_pct,
        "batch_size": config.evaluate.batch_size,
        "versions": pixel_versions() | {"timm": timm.__version__},
    }


def _devices(config: RunFile, evaluated: EvaluatedModel) -> str:
    return device_line(
        config,
        f"evaluate {evaluated.name}",
        precision=evaluated.precision,
        compiled=isinstance(evaluated.network, Teacher) and config.teacher.compile,
        batch=f"batches of {config.evaluate.batch_size}",
        workers=config.train.processes,
    )


def about(config: RunFile, image_set: ImageSet, evaluated: EvaluatedModel) -> dict[str, Any]:
    """The inputs that every result records: model, images and settings."""
    settings = config.evaluate
    return {
        "name": evaluated.name,
        "run": evaluated.run,
        "steps": evaluated.steps,
        "model": evaluated.model,
        "extra": evaluated.extra,
        "parameters": evaluated.parameters,
        "weights": settings.weights if evaluated.run else None,
        "model_sha256": evaluated.weights_sha256,
        "untrained_heads": list(evaluated.untrained),
        "image_size": evaluated.image_size,
        "crop_pct": settings.crop_pct,
        "precision": evaluated.precision,
        "images": image_set.title,
        "class_folders": settings.class_folders,
        "labels": settings.labels,
        "split": image_set.content,
        "made_from": all_that_made(config, evaluated, image_set),
    }


def _measured(config: RunFile, ref: ModelRef, image_set: ImageSet, say: Say) -> dict[str, Any]:
    asked, settings = predict_images(config, ref, image_set, say), config.evaluate
    evaluated, found = asked.evaluated, asked.predictions
    real = settings.labels == "imagenet-real"
    truth = real_labels(found.names, image_set.classes) if real else [{int(own)} for own in found.classes]
    figures = score(found, truth)
    result = {"stage": "evaluate"} | about(config, image_set, evaluated)
    result |= {"predictions": asked.folder, "not_scored": len(found.names) - figures["samples"]} | figures
    file = report_file("evaluation", settings, image_set.title, evaluated.usual_crop)
    store = Store(config.workspace).child(evaluated.report_dir)
    _say_why_again(store, file, result, say)
    put_report(store, file, result)
    for head in HEADS:
        if one := figures[head]:
            say(f"{evaluated.name} {head:13}  top-1 {one['top1']:.2%}  top-5 {one['top5']:.2%}")
    if evaluated.untrained:
        say(f"{evaluated.name}: {untrained_line(evaluated.untrained, evaluated.why_untrained)}; it is not measured")
    say(f"{figures['samples']} images, {result['not_scored']} without a label → {evaluated.report_dir}/{file}")
    return result


def _say_why_again(store: Store, file: str, result: dict[str, Any], say: Say) -> None:
    """Say why a result that is there is not taken, where it is of something else than the new one."""
    if not store.exists(file):
        return
    try:
        found = read_json(store.read(file), store.display_path(file))
    except UserError:
        say(f"{store.display_path(file)}: is damaged, and replaced")
        return
    wanted = {key: value for key, value in result.items() if key not in (*HEADS, "samples", "not_scored", "made_from")}
    if why := outdated(found, wanted):
        say(f"{store.display_path(file)}: is replaced ({why})")
