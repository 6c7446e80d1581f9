"""Export as a command: the run's model from the workspace into a folder, with a card filled from the workspace's files.

A figure that no file of the workspace holds is not on the card.
"""

import json
from collections.abc import Iterator
from typing import Any

from pipeline.commands.run import Say
from schemas.config import RunFile
from schemas.label_identity import LabelIdentity
from schemas.manifests import LabelManifest, ShardManifest
from schemas.paths import local_path
from schemas.receipts import read_json
from stages.data.split import Split
from stages.evaluate.reports import carried_by_run, outdated, report_file, untrained_line
from stages.models.classifier import Classifier
from stages.models.export import TimmNetwork, exported, file_names, refuse_missing_packages, supported_network
from stages.models.export_folder import CARD_FILE, refuse_foreign, write_export
from stages.models.student import trained_student
from stages.storage.manifest import read_manifest
from stages.storage.run_files import FinishedRun, open_run, refuse_other_classes
from stages.storage.store import Store
from stages.train.plan import TAUGHT

_HEADS = {
    "class": "class head",
    "distillation": "distillation head",
    "fused": "mean of both heads' logits",
    "fused_softmax": "sum of both heads' softmaxes",
}


def export(config: RunFile, format_: str, out: str, say: Say, force: bool = False) -> dict[str, Any]:
    """Write the run file's trained model into the folder `out`.

    Args:
        config: has the workspace, the run, and in `evaluate.weights` which of its weights.
        format_: one of `schemas.formats.EXPORT_FORMATS`.
        out: a local folder.
        say: takes lines for the user.
        force: replace an export that is in the folder.

    Raises:
        UserError: if the run is not trained to its end, what writes the format is not installed, or `out` holds
            something else or cannot be written.
        MismatchError: if the run's classes are not those of the workspace.
    """
    refuse_missing_packages(format_)
    local_path(out, "--out")
    refuse_foreign(out, file_names(format_), force)
    finished = open_run(config.workspace, config.train.name)
    split = Split.open(config.workspace, "train", config.cache)
    refuse_other_classes(finished, split.classes)
    trained, file = finished.config(config), finished.weights(config.evaluate.weights).path
    model = trained_student(trained, split, file)
    handed_on = supported_network(model, trained, split.classes)
    untrained = _untrained(trained, model)
    if untrained:
        say(f"warning: {untrained}")
    files = exported(model, handed_on, format_, trained, split.classes)
    if format_ == "huggingface":
        files[CARD_FILE] = "\n".join(_card(trained, finished, split, handed_on, untrained)).encode() + b"\n"
    write_export(out, files, force)
    say(f"run {config.train.name}: {', '.join(files)} → {out}")
    sizes = {name: len(data) for name, data in files.items()}
    return {
        "stage": "export",
        "run": config.train.name,
        "format": format_,
        "out": out,
        "architecture": handed_on.architecture,
        "weights": config.evaluate.weights,
        "model_sha256": finished.file(file).sha256,
        "untrained_heads": list(trained.train.untrained_heads) if model.distilled else [],
        "files": sizes,
    }


def _untrained(config: RunFile, model: Classifier) -> str:
    """The note about a head that was never trained; "" if all were."""
    heads = config.train.untrained_heads
    if not model.distilled or not heads:
        return ""
    other = "distillation" if "class" in heads else "class"
    return (
        f"{untrained_line(heads, config.train.distillation)}: the export has the {other} head alone, as timm's plain "
        "transformer with a register token"
    )


def _card(
    config: RunFile, finished: FinishedRun, split: Split, handed_on: TimmNetwork, untrained: str
) -> Iterator[str]:
    file = finished.weights(config.evaluate.weights).path
    parameters = sum(parameter.numel() for parameter in handed_on.network.parameters())
    taught = "from the stored decisions of a teacher" if config.train.distillation in TAUGHT else "without a teacher"
    yield from (
        "---",
        "library_name: timm",
        "tags:",
        "- image-classification",
        "- timm",
        "---",
        "",
        f"# {config.train.name}",
    )
    yield ""
    yield f"{handed_on.architecture} with {parameters:,} parameters for {len(split.classes):,} classes,"
    yield f"trained {taught}"
    yield f"by deit-pipeline at {config.views.image_size} pixels. Weights: {file}."
    yield from ("", "    import timm", '    model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()')
    if untrained:
        yield from ("", f"Beware: {untrained}.")
    yield from ("", "## Data", "", "| what | how much |", "|---|---|")
    yield f"| training images | {len(split):,} |"
    yield f"| shards | {len(split.rows):,} |"
    yield f"| content of the shards | {split.content} |"
    yield from _teacher(config)
    yield from (
        "",
        "## Training",
        "",
        "| what | value |",
        "|---|---|",
        f"| steps taken | {finished.manifest.steps:,} |",
    )
    yield f"| last mean loss | {finished.manifest.loss} |"
    for table, keys in (("student", config.student), ("train", config.train), ("views", config.views)):
        yield from (f"| {table}.{key} | {json.dumps(value)} |" for key, value in keys.model_dump(mode="json").items())
    yield from ("", "## Results", "")
    yield from _results(config, finished)


def _teacher(config: RunFile) -> Iterator[str]:
    """The fields of the label set's manifest."""
    labels = read_manifest(Store(config.workspace).child(f"labels/{config.labels.name}"), LabelManifest)
    if config.train.distillation not in TAUGHT or labels is None:
        return
    teacher = LabelIdentity.of(labels.made_from, f"labels/{config.labels.name}").teacher
    yield f"| teacher | {teacher['model']} |"
    yield f"| teacher's weights, sha256 | {teacher['weights_sha256']} |"
    yield f"| teacher's agreement with the truth on centre crops | {labels.agreement:.2%} |"
    yield f"| views labelled of each image | {labels.views:,} |"


def _results(config: RunFile, finished: FinishedRun) -> Iterator[str]:
    """The val split's figures of these very weights at the size and crop of the export, where they are stored."""
    figures = config.evaluate.model_copy(
        update={"source": "", "labels": "source", "class_folders": "names", "image_size": 0, "model": ""}
    )
    config, store = config.model_copy(update={"evaluate": figures}), finished.store
    file = report_file("evaluation", figures, "val", finished.trained_with().evaluate.crop_pct)
    sha256 = finished.weights(figures.weights).sha256
    wanted = carried_by_run(config, finished.manifest.steps, sha256) | {"images": "val", "labels": "source"}
    val = read_manifest(Store(config.workspace).child("shards/val"), ShardManifest)
    wanted |= {"split": val.content} if val else {}
    found = read_json(store.read(file), store.display_path(file)) if store.exists(file) else {}
    if not found or outdated(found, wanted):
        yield "These weights were not evaluated."
        return
    yield f"On {found['samples']:,} held-out images, centre crops of {found['image_size']} pixels at crop_pct "
    yield f"{found['crop_pct']:g}; weights of sha256 {sha256[:12]}, images of content {found['split'][:12]}:"
    yield from ("", "| | top-1 | top-5 |", "|---|---|---|")
    for head, title in _HEADS.items():
        if found[head]:
            yield f"| {title} | {found[head]['top1']:.2%} | {found[head]['top5']:.2%} |"
