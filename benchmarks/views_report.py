"""The evidence of benchmarks/views.py: a table, a picture and the figures."""

import json
from pathlib import Path
from typing import Any

from cifar10 import Setting
from cifar10_report import gather, shown_command
from gpu import commit, machine, versions
from PIL import Image
from views import lines, measured

from stages.plotting.charts import Series, chart, markdown


def write_evidence(setting: Setting, out: Path) -> None:
    """Write views.json, .md and .png of what a workspace holds."""
    found = {
        "profile": setting.profile,
        "epochs": setting.sizes.epochs,
        "lines": [measured(setting, line) for line in lines(setting.sizes.epochs)],
        "alone": alone(setting),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "command": shown_command(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "views.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    (out / "views.md").write_text(page(found))
    if drawn := picture(found):
        drawn.save(out / "views.png")


def alone(setting: Setting) -> dict[str, list[float]]:
    """Top-1 of the main table's seeds trained on no decision, and on every decision of all views."""
    trainings = gather(setting)["trainings"]
    last = str(setting.sizes.epochs)
    return {
        row: [
            one["top1"][last].get("fused", one["top1"][last]["class"])
            for name, one in trainings.items()
            if name.startswith(f"{row}-") and last in one["top1"]
        ]
        for row in ("none", "token")
    }


def page(found: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [_row(one) for one in found["lines"]]
    head = ["store", "views", "top-1 fused", "class head", "distillation head", "teacher, CPU seconds", "bytes",
            "bytes a view"]  # fmt: skip
    missing = sum(not one["top1"] for one in found["lines"])
    seeds = {row: ", ".join(f"{value:.2%}" for value in values) for row, values in found["alone"].items()}
    parts = [
        f"# How many views are enough: CIFAR-10, profile {found['profile']}",
        f"The student with a distillation token of [cifar10.md](cifar10.md), {found['epochs']} epochs in every line, "
        "one seed each. Fewer views than epochs begin again. `hard`: hard distillation; the others: usual (soft) "
        "distillation; selected: hard distillation of the decisions whose margin is at least the median, the true "
        "label for the other views.",
        f"**{missing} of {len(rows)} lines are not run.**" if missing else "All lines are run.",
        markdown(head, rows).strip(),
        f"Seeds of the main table, without decisions: {seeds['none'] or 'none run'}; with all, fused: "
        f"{seeds['token'] or 'none run'}. Differences within the spread of these say nothing.",
        f"    {found['command']}",
        f"Commit {found['commit']}; {found['machine']['cores']} cores ({found['machine']['processor']}).",
    ]
    return "\n\n".join(parts) + "\n"


def _row(one: dict[str, Any]) -> list[str]:
    title = f"{one['store']}, selected from margin {one['margin']:.3f}" if one["margin"] is not None else one["store"]
    heads = [f"{one['top1'][head]:.2%}" if one["top1"] else "not run" for head in ("fused", "class", "distillation")]
    cost = one["teacher_cpu_seconds"]
    stored = [f"{one['bytes']:,}", f"{one['bytes_a_view']:.2f}"] if one["decisions"] else ["", ""]
    return [title, str(one["views"]), *heads, "" if cost is None else f"{cost:.1f}", *stored]


def picture(found: dict[str, Any]) -> Image.Image | None:
    """Top-1 by views, a line for each store; None before any line is run."""
    series = []
    for store in dict.fromkeys(one["store"] for one in found["lines"]):
        those = [one for one in found["lines"] if one["store"] == store and one["top1"] and not one["selected"]]
        points = sorted((float(one["views"]), 100 * one["top1"]["fused"]) for one in those)
        series += [Series(store, points)] if points else []
    if not series:
        return None
    about = f"Both heads fused, after {found['epochs']} epochs, one seed."
    return chart("Top-1 by labelled views", about, series, x="views of each image", y="top-1, %", log_x=True)
