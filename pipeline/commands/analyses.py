"""The paper's analyses of trained models as a command runs them: disagreement (Table 4) and tokens (section 4).

Each writes its figures as JSON, as a table and as a picture beside the run's evaluation, and is called as that is,
after what differs from the usual:

    WORKSPACE/runs/<run>/   disagreement.json  disagreement.md  disagreement.png  tokens.json  tokens.md  tokens.png
                            disagreement-<what else>.json and so on
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from pipeline.commands.evaluate import ModelPredictions, about, predict_images
from pipeline.commands.reports import put_figures
from pipeline.commands.source_notes import noted
from pipeline.execution.devices import compiled, run_device, settled
from pipeline.execution.progress import Progress
from schemas.config import RunFile
from schemas.errors import MismatchError, UserError
from schemas.manifests import LabelManifest
from schemas.receipts import differences
from stages.data.center_crop import centre_crops
from stages.data.image_set import ImageSet, open_image_set
from stages.evaluate import disagreement as table_4
from stages.evaluate import token_similarity as section_4
from stages.evaluate.evaluated_model import EvaluatedModel, ModelRef, open_evaluated_model
from stages.evaluate.reports import report_file, untrained_line
from stages.storage.manifest import read_manifest
from stages.storage.run_files import open_run, stored_run
from stages.storage.store import Store

Say = Callable[[str], None]


def disagreement(config: RunFile, say: Say) -> dict[str, Any]:
    """How often truth, teacher, an undistilled student and a distilled student's heads decide differently.

    Raises:
        UserError: if there are no images, a model cannot be had, or the student has one head.
        MismatchError: if the baseline had a teacher, or the images have no single true class.
    """
    config = compiled(settled(config))
    settings = config.evaluate
    if settings.labels != "source":
        raise MismatchError('--disagreement: needs one true class an image; set evaluate.labels = "source"')
    _refuse_models(config, "--disagreement")
    if settings.baseline:
        _refuse_taught(config, settings.baseline)
    image_set = noted(open_image_set(config), config.evaluate.source)
    asked = {"student": predict_images(config, ModelRef(run=config.train.name), image_set, say)}
    student = asked["student"].evaluated
    _refuse_untrained(student)
    if "distillation" not in asked["student"].predictions.top:
        table_4.predictors(
            asked["student"].predictions, asked["student"].predictions, None
        )  # fails before other models are evaluated
    asked["teacher"] = _ask_its_teacher(config, image_set, say)
    if settings.baseline:
        asked["baseline"] = predict_images(config, ModelRef(run=settings.baseline), image_set, say)
    else:
        say("without a student that no teacher taught: name its run with --baseline")
    baseline = asked["baseline"].predictions if settings.baseline else None
    decided = table_4.predictors(asked["teacher"].predictions, asked["student"].predictions, baseline)
    names, rates = list(decided), table_4.disagreement(decided)
    result = {
        "stage": "evaluate",
        "analysis": "disagreement",
        **about(config, image_set, student),
        "samples": len(asked["student"].predictions.names),
        "asked": {role: _source(config, image_set, one) for role, one in asked.items()},
        "rates": table_4.as_json(names, rates),
    }
    title = f"Disagreement, {config.train.name}, {result['samples']:,} images"
    text, picture = table_4.table(names, rates), table_4.draw(title, names, rates)
    against = [f"baseline-{settings.baseline}"] if settings.baseline else []
    file = report_file("disagreement", settings, image_set.title, student.usual_crop, *against)
    text = f"# {title}\n\n{_described(result)}\n\n{text}"
    _put(config, student.report_dir, file, result, text, picture, say)
    return result


def tokens(config: RunFile, say: Say) -> dict[str, Any]:
    """Cosine between a distilled student's class and distillation token, layer by layer.

    Raises:
        UserError: if there are no images or no such run, or the model has no distillation token.
    """
    config = compiled(settled(config))
    _refuse_models(config, "--tokens")
    image_set = noted(open_image_set(config), config.evaluate.source)
    evaluated = open_evaluated_model(
        config, ModelRef(run=config.train.name), image_set, torch.device(run_device(config))
    )
    with Progress(f"tokens {evaluated.name}", total=sum(image_set.rows), unit="images") as progress:

        def crops() -> Any:
            for block in range(len(image_set.rows)):
                for batch in centre_crops(
                    image_set,
                    block,
                    image_size=evaluated.image_size,
                    crop_pct=config.evaluate.crop_pct,
                    batch=config.evaluate.batch_size,
                    threads=config.train.processes,
                ):
                    yield batch
                    progress.advance(len(batch.names))

        found = section_4.token_cosines(evaluated, crops())
    result = {
        "stage": "evaluate",
        "analysis": "tokens",
        **about(config, image_set, evaluated),
        **found,
    }
    title = f"Tokens, {config.train.name}"
    text, picture = section_4.table(found), section_4.draw(title, found)
    if evaluated.untrained:
        text = f"{untrained_line(evaluated.untrained, evaluated.why_untrained).capitalize()}.\n\n{text}"
    file = report_file("tokens", config.evaluate, image_set.title, evaluated.usual_crop)
    _put(config, evaluated.report_dir, file, result, f"# {title}\n\n{_described(result)}\n\n{text}", picture, say)
    return result


def _put(
    config: RunFile, folder: str, file: str, result: dict[str, Any], text: str, picture: Image.Image, say: Say
) -> None:
    store = Store(config.workspace).child(folder)
    files = put_figures(store, file.removesuffix(".json"), result, text, picture)
    say(text)
    say(f"→ {store}: {', '.join(files)}")


def _described(result: dict[str, Any]) -> str:
    """What a result is of, in a line of its table."""
    weights = f"{result['weights']} weights {result['model_sha256'][:12]}"
    size = f"centre crops of {result['image_size']} pixels, crop_pct {result['crop_pct']:g}"
    others = [f"{role}: {one['name']}" for role, one in result.get("asked", {}).items() if role != "student"]
    return "; ".join([f"{result['model']}, {weights}", f"{result['images']}, {size}", *others]) + "."


def _source(config: RunFile, image_set: ImageSet, asked: ModelPredictions) -> dict[str, Any]:
    """Whose predictions, what made them, and where they are."""
    return about(config, image_set, asked.evaluated) | {
        "weights_sha256": asked.evaluated.weights_sha256,
        "predictions": asked.folder,
    }


def _ask_its_teacher(config: RunFile, image_set: ImageSet, say: Say) -> ModelPredictions:
    """The predictions of the teacher that the run learned from; of today's, where it learned from none.

    Raises:
        MismatchError: if its weights are not those that labelled.
    """
    stored = stored_run(config, config.train.name)
    if stored.train.distillation not in ("hard", "soft"):
        return predict_images(config, ModelRef(), image_set, say)
    if differences(stored.teacher.identity(), config.teacher.identity()):
        config = config.model_copy(update={"teacher": stored.teacher})  # else today's, whose file may have been moved
    asked = predict_images(config, ModelRef(), image_set, say)
    labels = read_manifest(Store(config.workspace).child(f"labels/{stored.labels.name}"), LabelManifest)
    if labels and labels.made_by == open_run(config.workspace, config.train.name).manifest.made_from["labels"]:
        labelled = labels.made_from["teacher"]["weights_sha256"]
        if labelled != asked.evaluated.weights_sha256:
            raise MismatchError(
                f"teacher.checkpoint: {asked.evaluated.model} has other weights than those that made labels/"
                f"{stored.labels.name}, from which run {config.train.name} learned; restore them"
            )
    return asked


def _refuse_untrained(student: EvaluatedModel) -> None:
    if student.untrained:
        raise UserError(
            f"evaluate --disagreement: {untrained_line(student.untrained, student.why_untrained)} in run "
            f"{student.run}; name a run whose heads were both trained by train.name"
        )


def _refuse_models(config: RunFile, option: str) -> None:
    if config.evaluate.members:
        raise UserError(f"{option}: is about a run; remove evaluate.model and name the run by train.name")


def _refuse_taught(config: RunFile, name: str) -> None:
    taught = stored_run(config, name).train.distillation
    if taught != "none":
        raise MismatchError(
            f'evaluate.baseline = {name}: was trained with train.distillation = "{taught}"; name a run that was '
            'trained with "none"'
        )
