"""Export as a command: the run's model from the workspace into a folder, with a card filled from the workspace's files.

A figure that no file of the workspace holds is not on the card.
"""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.commands.run import Say
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.run_file import parse_run
from stages.data.split import Split
from stages.evaluate.evaluated_model import run_weights
from stages.models.classifier import Classifier
from stages.models.export import exported, refuse_missing_packages
from stages.models.student import trained_student
from stages.storage.commit import read_manifest
from stages.storage.store import Store
from stages.train.plan import TAUGHT

CARD_FILE = "README.md"
_UNTRAINED = (
    "the distillation head was never trained (train.distillation was none), and timm averages it with the class head: "
    "take the class head alone"
)
_HEADS = {
    "class": "class head",
    "distillation": "distillation head",
    "fused": "mean of both heads' logits",
    "fused_softmax": "sum of both heads' softmaxes",
}


def export(run: RunFile, format_: str, out: str, say: Say) -> dict[str, Any]:
    """Write the run file's trained model into the folder `out`.

    Args:
        run: says the workspace, the run, and by `evaluate.weights` which of its weights.
        format_: one of `stages.models.export.FORMATS`.
        out: a local folder; files of the same names are replaced.
        say: takes lines for the user.

    Raises:
        UserError: if the run is not trained to its end, what writes the format is not installed, or `out` cannot
            be written.
    """
    refuse_missing_packages(format_)
    store = Store(run.workspace).at(f"runs/{run.train.name}")
    manifest = read_manifest(store)
    if manifest is None:
        raise UserError(f"{store}: is not trained to its end; run `deit-pipeline train` first")
    split = Split.open(run.workspace, "train", run.cache)
    trained = _as_trained(run, store)
    file, sha256 = run_weights(run)
    model = trained_student(trained, split, file)
    if _untrained_head(trained, model):
        say(f"warning: {_UNTRAINED}")
    files = exported(model, format_, trained, split.classes)
    if format_ == "huggingface":
        files[CARD_FILE] = "\n".join(_card(trained, manifest, split, model, (file, sha256))).encode() + b"\n"
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); name another folder") from None
    say(f"run {run.train.name}: {', '.join(files)} → {folder}")
    sizes = {name: len(data) for name, data in files.items()}
    return {"stage": "export", "run": run.train.name, "format": format_, "out": str(folder), "files": sizes}


def _untrained_head(run: RunFile, model: Classifier) -> bool:
    return model.distilled and run.train.distillation == "none"


def _as_trained(run: RunFile, store: Store) -> RunFile:
    """The run file that was stored with the run, in today's workspace and with today's evaluation."""
    values = tomllib.loads(store.read("run.toml").decode())
    stored = parse_run(values, store.name("run.toml"))
    return stored.model_copy(update={"workspace": run.workspace, "evaluate": run.evaluate})


def _card(
    run: RunFile, manifest: dict[str, Any], split: Split, model: Classifier, weights: tuple[str, str | None]
) -> Iterator[str]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    taught = "from the stored decisions of a teacher" if run.train.distillation in TAUGHT else "without a teacher"
    yield from (
        "---",
        "library_name: timm",
        "tags:",
        "- image-classification",
        "- timm",
        "---",
        "",
        f"# {run.train.name}",
    )
    yield ""
    yield f"{run.student.model} with {parameters:,} parameters for {len(split.classes):,} classes, trained {taught}"
    yield f"by deit-pipeline at {run.views.image_size} pixels. Weights: {weights[0]}."
    yield from ("", "    import timm", '    model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()')
    if _untrained_head(run, model):
        yield from ("", f"Beware: {_UNTRAINED}.")
    yield from ("", "## Data", "", "| what | how much |", "|---|---|")
    yield f"| training images | {len(split):,} |"
    yield f"| shards | {len(split.rows):,} |"
    yield f"| content of the shards | {split.content} |"
    yield from _teacher(run)
    yield from ("", "## Training", "", "| what | value |", "|---|---|", f"| steps taken | {manifest['steps']:,} |")
    yield f"| last mean loss | {manifest['loss']} |"
    for table, keys in (("student", run.student), ("train", run.train), ("views", run.views)):
        yield from (f"| {table}.{key} | {json.dumps(value)} |" for key, value in keys.model_dump(mode="json").items())
    yield from ("", "## Results", "")
    yield from _results(run, weights[1])


def _teacher(run: RunFile) -> Iterator[str]:
    """What the label set's manifest says."""
    labels = read_manifest(Store(run.workspace).at(f"labels/{run.labels.name}"))
    if run.train.distillation not in TAUGHT or labels is None:
        return
    teacher = labels["made_from"]["teacher"]
    yield f"| teacher | {teacher['model']} |"
    yield f"| teacher's weights, sha256 | {teacher['weights_sha256']} |"
    yield f"| teacher's agreement with the truth on centre crops | {labels['agreement']:.2%} |"
    yield f"| views labelled of each image | {labels['views']:,} |"


def _results(run: RunFile, sha256: str | None) -> Iterator[str]:
    """What evaluation.json says, if it is of these very weights."""
    store = Store(run.workspace).at(f"runs/{run.train.name}")
    found = json.loads(store.read("evaluation.json")) if store.exists("evaluation.json") else {}
    if found.get("model_sha256") != sha256:
        yield "These weights were not evaluated."
        return
    yield f"On {found['samples']:,} held-out images, centre crops of {found['image_size']} pixels:"
    yield from ("", "| | top-1 | top-5 |", "|---|---|---|")
    for head, name in _HEADS.items():
        if found[head]:
            yield f"| {name} | {found[head]['top1']:.2%} | {found[head]['top5']:.2%} |"
