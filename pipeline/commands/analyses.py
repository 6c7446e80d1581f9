"""The paper's analyses of trained models as a command runs them: disagreement (Table 4) and tokens (section 4).

Each writes its figures as JSON, as a table and as a picture beside the run's evaluation:

    WORKSPACE/runs/<run>/   disagreement.json  disagreement.md  disagreement.png  tokens.json  tokens.md  tokens.png
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from pipeline.commands.evaluate import ModelPredictions, predict_images, report_dir
from pipeline.commands.reports import put_figures
from pipeline.commands.source_notes import noted
from pipeline.execution.devices import compiled, run_device, settled
from pipeline.execution.progress import Progress
from schemas.config import RunFile
from schemas.errors import MismatchError, UserError
from stages.data.center_crop import centre_crops
from stages.data.image_set import ImageSet, open_image_set
from stages.evaluate import disagreement as table_4
from stages.evaluate import token_similarity as section_4
from stages.evaluate.evaluated_model import ModelRef, open_evaluated_model
from stages.storage.run_files import stored_run
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
    if "distillation" not in asked["student"].predictions.top:
        table_4.predictors(
            asked["student"].predictions, asked["student"].predictions, None
        )  # says so before others are asked
    asked["teacher"] = predict_images(config, ModelRef(), image_set, say)
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
        **_about(config, image_set, asked["student"]),
        "asked": {role: _source(one) for role, one in asked.items()},
        "rates": table_4.as_json(names, rates),
    }
    title = f"Disagreement, {config.train.name}, {result['samples']:,} images"
    text, picture = table_4.table(names, rates), table_4.draw(title, names, rates)
    _put(config, report_dir(asked["student"].evaluated), "disagreement", result, f"# {title}\n\n{text}", picture, say)
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
        "run": evaluated.run,
        "model": evaluated.model,
        "model_sha256": evaluated.weights_sha256,
        "image_size": evaluated.image_size,
        "images": image_set.title,
        "split": image_set.content,
        **found,
    }
    title = f"Tokens, {config.train.name}"
    text, picture = section_4.table(found), section_4.draw(title, found)
    _put(config, report_dir(evaluated), "tokens", result, f"# {title}\n\n{text}", picture, say)
    return result


def _put(
    config: RunFile, folder: str, name: str, result: dict[str, Any], text: str, picture: Image.Image, say: Say
) -> None:
    store = Store(config.workspace).child(folder)
    files = put_figures(store, name, result, text, picture)
    say(text)
    say(f"→ {store}: {', '.join(files)}")


def _about(config: RunFile, image_set: ImageSet, asked: ModelPredictions) -> dict[str, Any]:
    return {
        "run": asked.evaluated.run,
        "samples": len(asked.predictions.names),
        "crop_pct": config.evaluate.crop_pct,
        "images": image_set.title,
        "split": image_set.content,
    }


def _source(asked: ModelPredictions) -> dict[str, Any]:
    """Whose answers, and where they are."""
    evaluated = asked.evaluated
    who = {"name": evaluated.name, "run": evaluated.run, "model": evaluated.model, "image_size": evaluated.image_size}
    return who | {"weights_sha256": evaluated.weights_sha256, "predictions": asked.folder}


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
