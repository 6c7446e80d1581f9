"""Throughput as a command runs it (paper, Tables 1 and 5, Figure 1): model by model, beside what they reach.

    WORKSPACE/evaluations/
      <model>/throughput-<size>px-<device>-<settings>.json    every timed run
      throughput-<device>.json  .md  .png      the models of the last command side by side, with all accuracies of
                                               theirs that the workspace has

A row's accuracies come from the evaluations of the workspace whose model and size are the row's, at the run file's
crop, of weights as they are now; each names its file.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch

from pipeline.commands.reports import put_figures, put_report
from pipeline.execution.devices import run_device
from schemas import paper
from schemas.config import Member, RunFile
from schemas.errors import UserError
from schemas.manifests import ShardManifest
from schemas.receipts import fingerprint
from stages.data.image_set import known_classes
from stages.evaluate.evaluated_model import at_own_crop
from stages.evaluate.reports import best_head, carried_by_run, outdated, report_dir, stored_evaluations
from stages.evaluate.throughput import device_name
from stages.evaluate.throughput import throughput as measure
from stages.models.precision import chosen_precision
from stages.plotting.charts import Series, chart, markdown
from stages.storage.manifest import read_manifest
from stages.storage.run_files import RUN_FILE, open_run, run_store, stored_run
from stages.storage.store import Store

Say = Callable[[str], None]
_IMAGENET = 1000
"""Classes where neither shards nor the run file name any."""


def throughput(config: RunFile, say: Say) -> dict[str, Any]:
    """Measure images a second of the run's student, or of the models the run file names.

    Raises:
        UserError: if a model cannot be built or does not fit memory.
    """
    settings, device = config.evaluate, torch.device(run_device(config))
    precision = chosen_precision(settings.precision, "student", device.type)
    store = Store(config.workspace).child("evaluations")
    own = (
        stored_run(config, config.train.name)
        if run_store(config.workspace, config.train.name).exists(RUN_FILE)
        else config
    )
    size = settings.image_size or (0 if settings.members else own.image_size)
    wanted = settings.members or (Member(own.student.model, "", own.student.extra, 0),)
    slug = _slug(device_name(device)) + ("" if precision == "fp32" else f"-{precision}")
    classes = len(known_classes(config) or ()) or _IMAGENET
    speeds = []
    for member in wanted:
        found = measure(
            member,
            image_size=size or next((row.image_size for row in paper.table_5(member.model)), 0),
            device=device,
            max_batch=settings.max_batch,
            runs=settings.runs,
            precision=precision,
            num_classes=classes,
        )
        file = f"{_slug(member.model)}/throughput-{found['image_size']}px-{slug}-{_settings_id(found)}.json"
        put_report(store, file, found)
        speeds.append(found | {"file": f"evaluations/{file}"})
        say(f"{member.model}: {found['images_per_second']:,.1f} images/s in batches of {found['batch_size']}")
    measured = list(_current_evaluations(config, say))
    rows = [row for speed in speeds for row in _rows(speed, measured, say)]
    about = {"stage": "evaluate", "analysis": "throughput", "device": device_name(device)}
    result = {**about, "precision": precision, "crop_pct": settings.crop_pct, "weights": settings.weights, "rows": rows}
    text, picture = _table(result), _figure_1(result)
    files = put_figures(store, f"throughput-{slug}", result, text, picture)
    say(text)
    say(f"→ {store}: {', '.join(files)}")
    return result


def _settings_id(found: dict[str, Any]) -> str:
    """Eight hex digits that change with what a model's throughput was measured with."""
    measured = ("batch_size", "limited_by", "seconds", "images_per_second")
    return fingerprint({key: value for key, value in found.items() if key not in measured})[:8]


def _current_evaluations(config: RunFile, say: Say) -> Iterator[dict[str, Any]]:
    """Evaluations of runs and models as they are now, at today's crop and of the weights of today's run file.

    Others are left out; results of earlier versions that lack inputs are reported.
    """
    val = read_manifest(Store(config.workspace).child("shards/val"), ShardManifest)
    for path, found in stored_evaluations(config.workspace):
        if found.get("crop_pct") not in _crops_of(config, found):
            continue
        why = outdated(found, {"labels": found.get("labels"), "class_folders": found.get("class_folders")})
        why = why or _other_weights(config, path, found)
        if not why and kind(found) == "top1" and val and val.content != found["split"]:
            why = "the val split was another"
        if why:
            say(f"{path}: is left out ({why}); run `deit-pipeline evaluate` for it again")
        elif found["run"] is None or found["weights"] == config.evaluate.weights:
            yield found | {"file": path}


def _crops_of(config: RunFile, found: dict[str, Any]) -> set[float]:
    """The crops at which today's run file would measure the model of an evaluation: its own, and timm's."""
    crops = {config.evaluate.crop_pct}
    if not found.get("run") and timm.is_model(str(found.get("model")).partition(".")[0]):
        crops.add(at_own_crop(config, Member(found["model"], "", {}, 0)).evaluate.crop_pct)
    return crops


def _other_weights(config: RunFile, path: str, found: dict[str, Any]) -> str:
    """Why an evaluation is not of the weights that its folder stands for; "" where it is."""
    folder = path.rpartition("/")[0]
    if found["run"] is None:
        return "" if folder == report_dir(None, found["name"], _identity(found)) else "its folder is of other weights"
    if folder != f"runs/{found['run']}":
        return "it is in another run's folder"
    try:
        finished = open_run(config.workspace, found["run"])
        sha256 = finished.weights(found["weights"]).sha256
        wanted = carried_by_run(finished.config(config), finished.manifest.steps, sha256)
    except UserError as error:
        return str(error)
    return outdated(found, wanted | {"weights": found["weights"], "image_size": found["image_size"]})


def _identity(found: dict[str, Any]) -> dict[str, Any]:
    return {"model": found["model"], "extra": found["extra"], "weights_sha256": found["model_sha256"]}


def kind(evaluation: dict[str, Any]) -> str:
    """Which column of Table 5 an evaluation is for: top1, real or v2; "" = another data set."""
    if evaluation["labels"] == "imagenet-real":
        return "real"
    if evaluation["class_folders"] == "indices":
        return "v2"
    return "top1" if evaluation["images"] == "val" else ""


def _rows(speed: dict[str, Any], found: list[dict[str, Any]], say: Say) -> Iterator[dict[str, Any]]:
    """A row for each set of weights of a model that was evaluated, or one without accuracies."""
    keys = ("model", "image_size", "extra")
    mine = [one for one in found if kind(one) and all(one[key] == speed[key] for key in keys)]
    row = {key: speed[key] for key in ("model", "image_size", "batch_size", "limited_by", "runs", "images_per_second")}
    row |= {"parameters": speed["parameters"], "throughput_file": speed["file"]}
    named: list[tuple[Any, Any]] = sorted({(one["name"], str(one["model_sha256"])) for one in mine})
    for name, sha256 in named or [(None, None)]:
        its = [one for one in mine if (one["name"], str(one["model_sha256"])) == (name, sha256)]
        accuracies = _accuracies(its, say)
        untrained = sorted({head for one in its for head in one["untrained_heads"]})
        more = {"model_sha256": sha256, "untrained_heads": untrained} if name else {}
        crops = sorted({one["crop_pct"] for one in its})
        yield row | {"name": name, **more, "crops": crops, "accuracies": accuracies}


def _accuracies(its: list[dict[str, Any]], say: Say) -> dict[str, dict[str, Any]]:
    """Top-1 of a model by column, each with its file; of several files of one column the first."""
    found: dict[str, dict[str, Any]] = {}
    for one in its:
        mine = {"top1": best_head(one)["top1"], "file": one["file"]}
        first = found.setdefault(kind(one), mine)
        if first["top1"] != mine["top1"]:
            say(f"{mine['file']}: is left out, as {first['file']} is of the same column; delete the one not wanted")
    return found


_COLUMNS = {"top1": "top-1", "real": "Real top-1", "v2": "V2 top-1"}


def _table(result: dict[str, Any]) -> str:
    head = ["model", "weights", "parameters", "size", "batch", "images/s", *_COLUMNS.values()]
    lines = []
    theirs: dict[str, list[str]] = {}
    for row in result["rows"]:
        reached = [row["accuracies"].get(column) for column in _COLUMNS]
        figures = [f"{one['top1']:.1%}" if one else "" for one in reached]
        limit = "" if row["limited_by"] == "memory" else " (limit set)"
        size, batch = str(row["image_size"]), f"{row['batch_size']}{limit}"
        speed = f"{row['images_per_second']:,.1f}"
        lines.append([row["model"], row["name"] or "", f"{row['parameters']:,}", size, batch, speed, *figures])
        for known in paper.table_5(row["model"], row["image_size"]):
            accuracies = ["" if one is None else f"{one:.1f}%" for one in (known.top1, known.real, known.v2)]
            theirs[known.name] = [known.name, row["model"], size, f"{known.images_per_second:,.1f}", *accuracies]
    runs = ", ".join(sorted({str(row["runs"]) for row in result["rows"]}))
    about = f"Images a second in {result['precision']} over {runs} runs; accuracies at {_crops(result)}."
    about += _about_untrained(result["rows"])
    text = f"# Throughput on {result['device']}\n\n{about}\n\n{markdown(head, lines)}"
    if theirs:
        head = ["the paper's name", "model", "size", "images/s on one V100", *_COLUMNS.values()]
        text += f"\nThe paper's ({paper.CREDIT}, Table 5):\n\n{markdown(head, list(theirs.values()))}"
        others = [row for row in paper.TABLE_5 if row.name not in theirs]
        named = "; ".join(f"{row.name} ({_in_timm(row)})" for row in others)
        text += f"\nRows of Table 5 that were not measured: {named or 'none'}.\n"
    return text


def _in_timm(row: paper.PaperRow) -> str:
    return f"{row.model}, {row.image_size} px" if timm.is_model(row.model) else "not in timm"


def _crops(result: dict[str, Any]) -> str:
    crops = sorted({crop for row in result["rows"] for crop in row["crops"]})
    return f"crop_pct {', '.join(f'{crop:g}' for crop in crops or [result['crop_pct']])}"


def _about_untrained(rows: list[dict[str, Any]]) -> str:
    """A sentence about heads that were never trained, where there are any."""
    named = [f"{row['name']}'s {head} head" for row in rows for head in row.get("untrained_heads", ())]
    return f" Never trained, and not counted: {', '.join(named)}." if named else ""


def _figure_1(result: dict[str, Any]) -> Any:
    """Accuracy over throughput, a point for each row that has both; None where none has."""
    rows = [row for row in result["rows"] if "top1" in row["accuracies"]]
    series = [
        Series(row["name"], [(row["images_per_second"], 100 * row["accuracies"]["top1"]["top1"])], joined=False)
        for row in rows
    ]
    if not series:
        return None
    about = f"Top-1 on the val split over images a second in {result['precision']}, at the largest batch tried."
    title = f"Accuracy and throughput on {result['device']}"
    return chart(title, about, series, x="images a second", y="top-1, %", log_x=True)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)
