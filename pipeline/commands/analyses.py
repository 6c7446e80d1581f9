"""The paper's analyses of trained models as a command runs them: disagreement (Table 4) and tokens (section 4).

Each writes its figures as JSON, as a table and as a picture beside the run's evaluation:

    WORKSPACE/runs/<run>/   disagreement.json  disagreement.md  disagreement.png  tokens.json  tokens.md  tokens.png
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from pipeline.commands.evaluate import ModelPredictions, ask, report_dir
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


def disagreement(run: RunFile, say: Say) -> dict[str, Any]:
    """How often truth, teacher, an undistilled student and a distilled student's heads decide differently.

    Raises:
        UserError: if there are no images, a model cannot be had, or the student has one head.
        MismatchError: if the baseline had a teacher, or the images have no single true class.
    """
    run = compiled(settled(run))
    settings = run.evaluate
    if settings.labels != "source":
        raise MismatchError('--disagreement: needs one true class an image; set evaluate.labels = "source"')
    _refuse_models(run, "--disagreement")
    if settings.baseline:
        _refuse_taught(run, settings.baseline)
    gallery = noted(open_image_set(run), run.evaluate.source)
    asked = {"student": ask(run, ModelRef(run=run.train.name), gallery, say)}
    if "distillation" not in asked["student"].found.top:
        table_4.predictors(asked["student"].found, asked["student"].found, None)  # says so before others are asked
    asked["teacher"] = ask(run, ModelRef(), gallery, say)
    if settings.baseline:
        asked["baseline"] = ask(run, ModelRef(run=settings.baseline), gallery, say)
    else:
        say("without a student that no teacher taught: name its run with --baseline")
    baseline = asked["baseline"].found if settings.baseline else None
    decided = table_4.predictors(asked["teacher"].found, asked["student"].found, baseline)
    names, rates = list(decided), table_4.disagreement(decided)
    result = {
        "stage": "evaluate",
        "analysis": "disagreement",
        **_about(run, gallery, asked["student"]),
        "asked": {role: _source(one) for role, one in asked.items()},
        "rates": table_4.as_json(names, rates),
    }
    title = f"Disagreement, {run.train.name}, {result['samples']:,} images"
    text, picture = table_4.table(names, rates), table_4.draw(title, names, rates)
    _put(run, report_dir(asked["student"].subject), "disagreement", result, f"# {title}\n\n{text}", picture, say)
    return result


def tokens(run: RunFile, say: Say) -> dict[str, Any]:
    """Cosine between a distilled student's class and distillation token, layer by layer.

    Raises:
        UserError: if there are no images or no such run, or the model has no distillation token.
    """
    run = compiled(settled(run))
    _refuse_models(run, "--tokens")
    gallery = noted(open_image_set(run), run.evaluate.source)
    subject = open_evaluated_model(run, ModelRef(run=run.train.name), gallery, torch.device(run_device(run)))
    with Progress(f"tokens {subject.name}", total=sum(gallery.rows), unit="images") as progress:

        def crops() -> Any:
            for block in range(len(gallery.rows)):
                for batch in centre_crops(
                    gallery,
                    block,
                    image_size=subject.image_size,
                    crop_pct=run.evaluate.crop_pct,
                    batch=run.evaluate.batch_size,
                    threads=run.train.processes,
                ):
                    yield batch
                    progress.advance(len(batch.names))

        found = section_4.token_cosines(subject, crops())
    result = {
        "stage": "evaluate",
        "analysis": "tokens",
        "run": subject.run,
        "model": subject.model,
        "model_sha256": subject.weights_sha256,
        "image_size": subject.image_size,
        "images": gallery.title,
        "split": gallery.content,
        **found,
    }
    title = f"Tokens, {run.train.name}"
    text, picture = section_4.table(found), section_4.draw(title, found)
    _put(run, report_dir(subject), "tokens", result, f"# {title}\n\n{text}", picture, say)
    return result


def _put(
    run: RunFile, folder: str, name: str, result: dict[str, Any], text: str, picture: Image.Image, say: Say
) -> None:
    store = Store(run.workspace).at(folder)
    files = put_figures(store, name, result, text, picture)
    say(text)
    say(f"→ {store}: {', '.join(files)}")


def _about(run: RunFile, gallery: ImageSet, asked: ModelPredictions) -> dict[str, Any]:
    return {
        "run": asked.subject.run,
        "samples": len(asked.found.names),
        "crop_pct": run.evaluate.crop_pct,
        "images": gallery.title,
        "split": gallery.content,
    }


def _source(asked: ModelPredictions) -> dict[str, Any]:
    """Whose answers, and where they are."""
    subject = asked.subject
    who = {"name": subject.name, "run": subject.run, "model": subject.model, "image_size": subject.image_size}
    return who | {"weights_sha256": subject.weights_sha256, "predictions": asked.folder}


def _refuse_models(run: RunFile, option: str) -> None:
    if run.evaluate.members:
        raise UserError(f"{option}: is about a run; remove evaluate.model and name the run by train.name")


def _refuse_taught(run: RunFile, name: str) -> None:
    taught = stored_run(run, name).train.distillation
    if taught != "none":
        raise MismatchError(
            f'evaluate.baseline = {name}: was trained with train.distillation = "{taught}"; name a run that was '
            'trained with "none"'
        )
