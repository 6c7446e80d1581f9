"""Throughput as a command runs it (paper, Tables 1 and 5, Figure 1): model by model, beside what they reach.

    WORKSPACE/evaluations/
      <model>/throughput-<size>px-<device>.json    every timed run
      throughput-<device>.json  .md  .png          the models of the last command side by side, with all accuracies of
                                                   theirs that the workspace has

A row's accuracies come from the evaluations of the workspace whose model and size are the row's; each names its file.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.commands.reports import put_figures, put_report
from pipeline.execution.devices import run_device
from schemas import paper
from schemas.config import Member, RunFile
from schemas.receipts import read_json
from stages.evaluate.throughput import device_name
from stages.evaluate.throughput import throughput as measure
from stages.models.precision import chosen_precision
from stages.plotting.charts import Series, chart, markdown
from stages.storage.store import Store

Say = Callable[[str], None]


def throughput(run: RunFile, say: Say) -> dict[str, Any]:
    """Measure images a second of the run's student, or of the models the run file names.

    Raises:
        UserError: if a model cannot be built or does not fit memory.
    """
    settings, device = run.evaluate, torch.device(run_device(run))
    precision = chosen_precision(settings.precision, "student", device.type)
    store = Store(run.workspace).at("evaluations")
    size = settings.image_size or (0 if settings.members else run.student.img_size or run.views.image_size)
    wanted = settings.members or (Member(run.student.model, "", run.student.extra, 0),)
    slug = _slug(device_name(device)) + ("" if precision == "fp32" else f"-{precision}")
    speeds = []
    for member in wanted:
        found = measure(
            member,
            image_size=size,
            device=device,
            max_batch=settings.max_batch,
            runs=settings.runs,
            precision=precision,
        )
        file = f"{_slug(member.model)}/throughput-{found['image_size']}px-{slug}.json"
        put_report(store, file, found)
        speeds.append(found | {"file": f"evaluations/{file}"})
        say(f"{member.model}: {found['images_per_second']:,.1f} images/s in batches of {found['batch_size']}")
    rows = [row for speed in speeds for row in _rows(speed, list(evaluations(run.workspace)))]
    about = {"stage": "evaluate", "analysis": "throughput", "device": device_name(device)}
    result = {**about, "precision": precision, "rows": rows}
    text, picture = _table(result), _figure_1(result)
    files = put_figures(store, f"throughput-{slug}", result, text, picture)
    say(text)
    say(f"→ {store}: {', '.join(files)}")
    return result


def evaluations(workspace: str) -> Iterator[dict[str, Any]]:
    """All evaluations of a workspace, of runs and of models, each with its file."""
    store = Store(workspace)
    for folder in ("runs", "evaluations"):
        for name in store.folders(folder):
            for file in sorted(store.files(f"{folder}/{name}")):
                if file.startswith("evaluation") and file.endswith(".json"):
                    path = f"{folder}/{name}/{file}"
                    found = read_json(store.read(path), store.name(path))
                    if "model" in found:  # those of the first version had no such key
                        yield found | {"file": path}


def kind(evaluation: dict[str, Any]) -> str:
    """Which column of Table 5 an evaluation is for: top1, real or v2; "" = another data set."""
    if evaluation["labels"] == "imagenet-real":
        return "real"
    if evaluation["class_folders"] == "indices":
        return "v2"
    return "top1" if evaluation["images"] == "val" else ""


def best(evaluation: dict[str, Any]) -> float:
    """Top-1 of both heads fused, or of a model's only one, as a fraction."""
    value: float = (evaluation["fused"] or evaluation["class"])["top1"]
    return value


def _rows(speed: dict[str, Any], found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each set of weights of a model that was evaluated, or one without accuracies."""
    keys = ("model", "image_size", "extra")
    mine = [one for one in found if kind(one) and all(one[key] == speed[key] for key in keys)]
    row = {key: speed[key] for key in ("model", "image_size", "batch_size", "limited_by", "runs", "images_per_second")}
    row |= {"parameters": speed["parameters"], "throughput_file": speed["file"]}
    for name in sorted({one["name"] for one in mine}) or [None]:
        accuracies = {kind(one): {"top1": best(one), "file": one["file"]} for one in mine if one["name"] == name}
        yield row | {"name": name, "accuracies": accuracies}


_COLUMNS = {"top1": "top-1", "real": "Real top-1", "v2": "V2 top-1"}


def _table(result: dict[str, Any]) -> str:
    head = ["model", "weights", "parameters", "size", "batch", "images/s", *_COLUMNS.values()]
    lines = []
    theirs: list[list[str]] = []
    for row in result["rows"]:
        reached = [row["accuracies"].get(column) for column in _COLUMNS]
        figures = [f"{one['top1']:.1%}" if one else "" for one in reached]
        limit = "" if row["limited_by"] == "memory" else " (limit set)"
        size, batch = str(row["image_size"]), f"{row['batch_size']}{limit}"
        speed = f"{row['images_per_second']:,.1f}"
        lines.append([row["model"], row["name"] or "", f"{row['parameters']:,}", size, batch, speed, *figures])
        known = paper.TABLE_5.get((row["model"].partition(".")[0], row["image_size"]))
        if known and not any(row["model"] == line[0] for line in theirs):
            accuracies = ["" if one is None else f"{one:.1f}%" for one in (known.top1, known.real, known.v2)]
            theirs.append([row["model"], size, f"{known.images_per_second:,.1f}", *accuracies])
    runs = ", ".join(sorted({str(row["runs"]) for row in result["rows"]}))
    about = f"Images a second in {result['precision']} over {runs} runs."
    text = f"# Throughput on {result['device']}\n\n{about}\n\n{markdown(head, lines)}"
    if theirs:
        head = ["model", "size", "images/s on one V100", *_COLUMNS.values()]
        text += f"\nThe paper's ({paper.CREDIT}, Table 5):\n\n{markdown(head, theirs)}"
    return text


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
