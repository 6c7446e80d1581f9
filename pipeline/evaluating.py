"""Evaluating as a command runs it: which model, on which images, and where the figures go."""

from collections.abc import Callable
from typing import Any

import torch

from pipeline.launch import run_device
from pipeline.progress import Progress
from schemas.config import RunFile
from schemas.errors import PipelineError
from stages.dataset import Split
from stages.evaluate import CentreCrops, accuracy
from stages.loader import load
from stages.store import Store, put_json, read_manifest
from stages.train import EMA_FILE, trained_student, weights_sha256
from stages.weights import MODEL_FILE

Say = Callable[[str], None]


def evaluate(run: RunFile, say: Say) -> dict[str, Any]:
    """Measure the run file's trained model on the val split.

    Raises:
        PipelineError: if there is no val split or no trained model, or it does not fit.
    """
    split = Split.open(run.workspace, "val", run.cache)
    settings, name = run.evaluate, run.train.name
    store = Store(run.workspace).at(f"runs/{name}")
    file = MODEL_FILE if settings.weights == "model" else EMA_FILE
    if not store.exists(file):
        raise PipelineError(f"{store.name(file)}: is missing; run `deit-pipeline train` first")
    model = trained_student(run, split, file)
    device = torch.device(run_device(run))
    size = run.student.img_size or run.views.image_size
    crops = CentreCrops(split, size, settings.crop_pct, settings.batch_size)
    batches = load(crops, workers=run.train.workers, order=range(len(crops)), pin=device.type == "cuda")
    with Progress(f"evaluate {name}", total=len(split), unit="images") as progress:
        found = accuracy(model.eval().to(device), batches, device, progress.advance)
    result = {
        "stage": "evaluate",
        "run": name,
        "weights": settings.weights,
        "model_sha256": weights_sha256(read_manifest(store), file),
        "image_size": size,
        "split": split.content,
    } | found
    put_json(store, "evaluation.json", result)
    for head in ("class", "distillation", "fused", "fused_softmax"):
        if found[head]:
            say(f"{name} {head:13}  top-1 {found[head]['top1']:.2%}  top-5 {found[head]['top5']:.2%}")
    return result
