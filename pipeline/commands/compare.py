"""Compare finished runs of a workspace: what differs in their run files, and what they reached (Tables 3, 8, Figure 3).

    WORKSPACE/comparisons/<runs>/   compare.json  compare.md  compare.png

Nothing is measured here: every figure is read from a run's manifest, run file or evaluation, which the result names.
An evaluation counts if it is of the run's weights as they are now, measured as `[evaluate]` says, on one and the same
set of images for all runs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import Image

from pipeline.commands.reports import put_figures
from schemas import paper
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.manifests import ShardManifest
from schemas.presets import PRESETS
from schemas.receipts import fingerprint, read_json, truncate_json
from stages.data.image_set import open_image_set
from stages.evaluate.reports import USUAL_CROP, best_head, carried_by_run, outdated, report_file
from stages.plotting.charts import Series, chart, markdown
from stages.storage.manifest import read_manifest
from stages.storage.run_files import FinishedRun, open_run, stored_run
from stages.storage.store import Store

Say = Callable[[str], None]
_HEADS = {"class": "class", "distillation": "distillation", "fused": "fused", "fused_softmax": "sum of softmaxes"}
_OF_EVALUATION = (
    "weights", "model_sha256", "untrained_heads", "image_size", "crop_pct", "precision", "images", "labels", "split",
)  # fmt: skip
"""What a row says of the evaluation that its figures are from."""
_NOT_TRAINED = (
    "workspace", "cluster", "cache", "evaluate", "train.name", "train.workers", "train.log_every",
    "train.validate_every", "train.validate_images", "train.trackers", "train.tensorboard", "tracking",
)  # fmt: skip
"""Keys that do not change what is trained, or that today's run file decides."""


def compare(config: RunFile, names: Sequence[str], say: Say) -> dict[str, Any]:
    """Lay runs side by side.

    Raises:
        UserError: if a run is not there, named twice, not trained to its end, or not evaluated as it is now and as
            `[evaluate]` says.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"compare: {twice[0]} is named twice; name each run once")
    images = _images(config)
    rows = [_row(config, name, images) for name in names]
    _refuse_other_images(rows)
    settings = {row["run"]: row.pop("settings") for row in rows}
    differing = _differing(list(settings.values()))
    for row in rows:
        row["differs"] = {key: settings[row["run"]].get(key) for key in differing}
    result = {"stage": "compare", "runs": rows}
    text, picture = _table(rows, differing), _figure_3(rows)
    store = Store(config.workspace).child(f"comparisons/{_folder(names)}")
    file = report_file("compare", config.evaluate, images.title, USUAL_CROP)
    files = put_figures(store, file.removesuffix(".json"), result, text, picture)
    say(text)
    say(f"→ {store}: {', '.join(files)}")
    return result


def _folder(names: Sequence[str]) -> str:
    """A folder name for runs in their order: no other runs have it."""
    joined = "-".join(names)
    if len(joined) <= 80 and not any("-" in name for name in names):
        return joined
    return f"{joined[:60]}-{fingerprint(list(names))[:8]}"


class _Images(NamedTuple):
    """The images that runs are compared on: a title, and what changes with any of them; None = they are not there."""

    title: str
    content: str | None


def _images(config: RunFile) -> _Images:
    if not config.evaluate.source and read_manifest(Store(config.workspace).child("shards/val"), ShardManifest) is None:
        return _Images("val", None)  # evaluations outlive the shards that they were measured on
    image_set = open_image_set(config)
    return _Images(image_set.title, image_set.content)


def _refuse_other_images(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows[1:]:
        if row["split"] != rows[0]["split"]:
            raise UserError(
                f"compare: {rows[0]['run']} and {row['run']} were evaluated on different images; restore the val split "
                "and run `deit-pipeline evaluate` for each"
            )


def _row(config: RunFile, name: str, images: _Images) -> dict[str, Any]:
    """What the files of one run say."""
    stored = stored_run(config, name)
    finished = open_run(config.workspace, name)
    file, evaluation = _evaluation(stored, finished, images)
    split, steps = read_manifest(Store(config.workspace).child("shards/train"), ShardManifest), finished.manifest.steps
    return {
        "run": name,
        "steps": steps,
        "epochs": steps * stored.train.batch_size / split.samples if split else None,
        "loss": finished.manifest.loss,
        "samples": evaluation["samples"],
        **{head: evaluation[head] for head in _HEADS},
        **{key: evaluation[key] for key in _OF_EVALUATION},
        "paper": _paper(stored, name),
        "files": [f"runs/{name}/{one}" for one in ("run.toml", "manifest.json", file)],
        "settings": _flat(stored.model_dump(mode="json")),
    }


def _evaluation(stored: RunFile, finished: FinishedRun, images: _Images) -> tuple[str, dict[str, Any]]:
    """The name and content of a run's evaluation.

    Raises:
        UserError: if there is none of its weights as they are now, measured as `[evaluate]` says.
    """
    name, settings, store = finished.name, stored.evaluate, finished.store
    again = f"run `deit-pipeline evaluate --set train.name={name}` with the same run file and --set"
    file = report_file("evaluation", settings, images.title, finished.trained_with().evaluate.crop_pct)
    weights = finished.weights(settings.weights).sha256
    if not store.exists(file):
        raise UserError(f"{store}: is not evaluated; {again} first, which makes {file}")
    found = read_json(store.read(file), store.display_path(file))
    wanted = carried_by_run(stored, finished.manifest.steps, weights)
    wanted |= {"images": images.title, "class_folders": settings.class_folders, "labels": settings.labels}
    if images.content is not None:
        wanted["split"] = images.content
    if why := outdated(found, wanted):
        raise UserError(f"{store.display_path(file)}: is not of the run as it is now ({why}); {again} again")
    return file, found


def _paper(stored: RunFile, name: str) -> dict[str, Any] | None:
    """Top-1 in percent that the paper gives for the preset of this name; None = there is none."""
    preset = PRESETS.get(name)
    heads = paper.TABLE_3.get(stored.student.model, {}) if preset and preset.table == 3 else {}
    return {"top1": preset.top1, "table": preset.table, **heads} if preset else None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of a run file by dotted key, but for those that do not change what is trained."""
    if name in _NOT_TRAINED:
        return {}
    if not isinstance(value, dict) or name.endswith(".extra"):
        return {name: value}
    return {key: leaf for part, one in value.items() for key, leaf in _flat(one, f"{name}.{part}".lstrip(".")).items()}


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all runs."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]


def _table(rows: Sequence[dict[str, Any]], differing: Sequence[str]) -> str:
    there = [head for head in _HEADS if any(row[head] or head in row["untrained_heads"] for row in rows)]
    head = ["run", *differing, "epochs", "loss", *(f"top-1, {_HEADS[one]}" for one in there), "top-5", "images"]
    lines = []
    for row in rows:
        top1 = [_cell(row, one) for one in there]
        epochs = "" if row["epochs"] is None else f"{row['epochs']:.1f}"
        changed = [truncate_json(row["differs"][key]) for key in differing]
        top5 = f"{best_head(row)['top5']:.1%}"
        lines.append([row["run"], *changed, epochs, f"{row['loss']:.3f}", *top1, top5, f"{row['samples']:,}"])
    text = f"# Runs side by side\n\n{_measured(rows[0])}\n\n{markdown(head, lines)}"
    if known := [row for row in rows if row["paper"]]:
        theirs = [
            [row["run"], *(str(row["paper"].get(one, "")) for one in ("class", "distillation")),
             str(row["paper"]["top1"]), str(row["paper"]["table"])]
            for row in known
        ]  # fmt: skip
        head = ["run", "class", "distillation", "top-1, %", "table"]
        text += f"\nThe paper's, for presets of these names ({paper.CREDIT}):\n\n{markdown(head, theirs)}"
    return text + f"\nTop-5 is of both heads fused by the mean of logits, or of the only one{_untrained(rows)}.\n"


def _cell(row: dict[str, Any], head: str) -> str:
    if row[head]:
        return f"{row[head]['top1']:.1%}"
    return "not trained" if head in row["untrained_heads"] else ""


def _untrained(rows: Sequence[dict[str, Any]]) -> str:
    """A note about heads that were never trained, if there are any."""
    return " that was trained" if any(row["untrained_heads"] for row in rows) else ""


def _measured(row: dict[str, Any]) -> str:
    """How the figures of all rows were measured."""
    weights = "moving averages of the weights" if row["weights"] == "ema" else "trained weights"
    return f"On {row['images']} ({row['split'][:12]}), crop_pct {row['crop_pct']:g}, {weights}."


_LENGTH = ("train.epochs", "train.max_steps", "train.warmup_epochs", "labels.views", "train.reuse_views")
"""Keys by which trainings of one kind differ in length."""


def lines_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by epochs, a line for each way of training that more than its length tells from others."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted((row for row in rows if row["epochs"] is not None), key=lambda row: row["epochs"]):
        others = {key: value for key, value in row["differs"].items() if key not in _LENGTH}
        words = (f"{key.rpartition('.')[2]} {_plain(value)}" for key, value in others.items())
        lines.setdefault(", ".join(words) or "top-1", []).append(row)
    return lines


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else truncate_json(value)


def _figure_3(rows: Sequence[dict[str, Any]]) -> Image.Image | None:
    """Top-1 by epochs; None where no run's epochs are known, as without its shards."""
    series = [_series(name, of_line) for name, of_line in lines_of(rows).items()]
    if not series:
        return None
    about = (
        "Top-1 on the val split after training for so many epochs, both heads fused where there are two. A bar is the "
        f"standard error over the split's {rows[0]['samples']:,} images to both sides; the axis begins at 0."
    )
    return chart("Accuracy by epochs", about, series, x="epochs", y="top-1, %", y_range=(0.0, 0.0))


def _series(name: str, rows: Sequence[dict[str, Any]]) -> Series:
    """A line, its points with the runs' names; a line of one run has that run's name."""
    shares = [best_head(row)["top1"] for row in rows]
    return Series(
        rows[0]["run"] if len(rows) == 1 else name,
        [(row["epochs"], 100 * share) for row, share in zip(rows, shares, strict=True)],
        labels=[] if len(rows) == 1 else [row["run"] for row in rows],
        spread=[100 * math.sqrt(share * (1 - share) / row["samples"]) for row, share in zip(rows, shares, strict=True)],
    )
