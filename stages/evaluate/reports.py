"""Stored results: the name of a result's file, its fields, and whether it fits the request.

A result is named by what differs from the usual: the val split by its own classes, a model's own size and crop, the
weights themselves. It holds all its inputs, so a reader compares these with the wanted ones, and never
takes the figures of other weights, another crop or another size for these. No torch is loaded here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from schemas.config import EvaluateConfig, RunFile
from schemas.receipts import differences, fingerprint, read_json
from stages.storage.store import Store

HEADS = ("class", "distillation", "fused", "fused_softmax")
"""Heads by their names in results: `fused` is the mean of both heads' logits (the authors' code), `fused_softmax` the
sum of their softmaxes (the paper)."""
USUAL_CROP: float = EvaluateConfig.model_fields["crop_pct"].default
"""The crop's share of the resized short side, of a model that is no run."""
PRECISION = "fp32"
"""In which accuracy of students and of timm's models is measured, on every device."""
_CARRIED = ("untrained_heads", "made_from")
"""What every result says since version 0.2.0, besides what a reader compares."""


def report_file(kind: str, settings: EvaluateConfig, title: str, usual_crop: float, *more: str) -> str:
    """What a result is called, such as "evaluation-ema.json": after what differs from the usual.

    Args:
        kind: "evaluation", or an analysis.
        settings: how it was measured.
        title: of the images, where they are not the val split's.
        usual_crop: of the model, to which `settings.crop_pct` is compared.
        more: further words.
    """
    crop = f"crop{repr(settings.crop_pct).removesuffix('.0')}"
    size = f"{settings.image_size}px-{crop}" if settings.image_size else crop * (settings.crop_pct != usual_crop)
    real = "real" if settings.labels == "imagenet-real" else ""
    weights = settings.weights if settings.weights != "model" and not settings.model else ""
    return "-".join(filter(None, [kind, title if settings.source else "", real, size, weights, *more])) + ".json"


def report_dir(run: str | None, name: str, identity: Mapping[str, Any]) -> str:
    """The folder of the workspace for results of a model: a run's own, or one named by the model and its weights.

    Args:
        run: of the workspace; None = it is no run.
        name: of the model.
        identity: its `model`, `extra` and `weights_sha256`.
    """
    if run:
        return f"runs/{run}"
    return f"evaluations/{name}-{fingerprint({key: identity[key] for key in ('model', 'extra', 'weights_sha256')})[:8]}"


def carried_by_run(stored: RunFile, steps: int, weights_sha256: str) -> dict[str, Any]:
    """What a result of a run says, if it is of the run as it is now and measured as the run file says.

    Args:
        stored: the run file that was stored with the run, with today's `[evaluate]`.
        steps: that the run took.
        weights_sha256: of the file that `evaluate.weights` names.
    """
    settings = stored.evaluate
    return {
        "run": stored.train.name,
        "steps": steps,
        "model": stored.student.model,
        "extra": stored.student.extra,
        "weights": settings.weights,
        "model_sha256": weights_sha256,
        "image_size": settings.image_size or stored.image_size,
        "crop_pct": settings.crop_pct,
        "precision": PRECISION,
    }


def outdated(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Why a result is not of what is wanted, in a few words; "" where it is."""
    if missing := [key for key in (*wanted, *_CARRIED) if key not in found]:
        return f"an earlier version made it, which did not say its {missing[0]}"
    return "; ".join(differences({key: found[key] for key in wanted}, dict(wanted)))


def stored_evaluations(workspace: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All evaluations of a workspace, of runs and of models, each with its path."""
    store = Store(workspace)
    for folder in ("runs", "evaluations"):
        for name in store.folders(folder):
            for file in sorted(store.files(f"{folder}/{name}")):
                if file.startswith("evaluation") and file.endswith(".json"):
                    path = f"{folder}/{name}/{file}"
                    yield path, read_json(store.read(path), store.display_path(path))


def best_head(figures: Mapping[str, Any]) -> dict[str, float]:
    """Top-1 and top-5 of both heads fused by the mean of logits, or of the only head that was trained."""
    return next(figures[head] for head in ("fused", "class", "distillation") if figures[head])


def untrained_line(untrained: Sequence[str], distillation: str) -> str:
    """Which head was never trained, and why that is so, in words for people."""
    why = 'train.distillation was "none"' if distillation == "none" else "train.alpha left its term out of the loss"
    return f"the {' and the '.join(untrained)} head was never trained ({why})"
