"""The page and the picture of benchmarks/cifar10.py's figures, and the lines of its table."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from stages.evaluate.disagreement import TITLES
from stages.plotting.charts import Series, chart, heat_map, markdown
from stages.plotting.text import PAPER


class Line(NamedTuple):
    """A row of the table: its title, the run's row and head, and the paper's top-1 for DeiT-Ti at 224 pixels, or None.

    The paper has no figure for two class tokens; it says that the second one brings nothing (section 4).
    """

    title: str
    row: str
    head: str
    paper: float | None


LINES = (
    Line("no distillation", "none", "class", 72.2),
    Line("usual (soft) distillation", "usual", "class", 72.2),
    Line("hard distillation, one token", "hard", "class", 74.3),
    Line("distillation token: class head", "token", "class", 73.9),
    Line("distillation token: distillation head", "token", "distillation", 74.6),
    Line("distillation token: both fused", "token", "fused", 74.5),
    Line("two class tokens, fused", "two-class-tokens", "fused", None),
)


def tops(measured: dict[str, Any], row: str, head: str) -> list[float]:
    """Final top-1 of a row's seeds that are measured to their end, as fractions."""
    runs = [one for name, one in measured.items() if name == row or name.rpartition("-")[0] == row]
    found = (one["top1"][max(one["top1"], key=int)] for one in runs if one.get("done"))
    return [heads[head] for heads in found if head in heads]


def spread_of(values: Sequence[float]) -> float:
    """The largest less the smallest; 0 of fewer than two."""
    return max(values) - min(values) if values else 0.0


def page(found: dict[str, Any]) -> str:
    """The figures for people."""
    sizes, measured = found["sizes"], found["trainings"]
    done = sum(bool(one.get("done")) for one in measured.values())
    parts = [
        f"# CIFAR-10, profile {found['profile']}",
        _setting(found, sizes, measured),
        "" if done == len(found["planned"]) else f"**{done} of {len(found['planned'])} trainings are done so far.**",
        "## Top-1 on all test images, after the last epoch\n\n" + table(measured),
        "## What agrees with the paper\n\n" + _claims(found["claims"]),
        "Curves, and the matrix below as a picture: [cifar10.png](cifar10.png).",
        _disagreement(found["disagreement"]),
        _tokens(found["tokens"]),
        "## Cost\n\n" + _cost(found),
        f"## How\n\n    {found['command']}\n\n" + _how(found),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _setting(found: dict[str, Any], sizes: dict[str, Any], measured: dict[str, Any]) -> str:
    student, teacher = (
        next((one["parameters"] for name, one in measured.items() if name.startswith(who) and one["parameters"]), 0)
        for who in ("none", "teacher")
    )
    images, subset = found["images"], ", the first of each class" if sizes["images"] else ""
    deit = sizes["student"]
    return (
        f"{images['train']:,} training images of CIFAR-10{subset}; tested on {images['val']:,}. Student: a DeiT of "
        f"{student / 1e6:.2f} million parameters, patch {deit['patch_size']}, width {deit['embed_dim']}, depth "
        f"{deit['depth']}; {sizes['epochs']} epochs in every row, one view of each image an epoch, labelled once. "
        f"Teacher: a RegNetY of {teacher / 1e6:.2f} million parameters, trained here with the students' augmentation "
        f"for {sizes['teacher_epochs']} epochs. Nothing but the row's own keys differs between rows; sizes were "
        "decided before any accuracy was seen (`PROFILES` in `benchmarks/cifar10.py`)."
    )


def table(measured: dict[str, Any]) -> str:
    """The seven rows and the teacher, beside the paper's."""
    rows = [[f"teacher{_seeds(tops(measured, 'teacher', 'class'))}", *_top(tops(measured, "teacher", "class")), "82.9"]]
    for line in LINES:
        values = tops(measured, line.row, line.head)
        rows.append([line.title + _seeds(values), *_top(values), f"{line.paper}" if line.paper else ""])
    head = ["row", "top-1", "spread", "the paper's, ImageNet: DeiT-Ti and RegNetY-16GF"]
    return markdown(head, rows) + "\nSpread: the largest less the smallest of the seeds, in points.\n"


def _seeds(values: Sequence[float]) -> str:
    return f", {len(values)} seeds" if len(values) > 1 else ""


def _top(values: Sequence[float]) -> list[str]:
    if not values:
        return ["not run", ""]
    spread = f"{100 * spread_of(values):.2f}" if len(values) > 1 else ""
    return [f"{statistics.mean(values):.2%}", spread]


def _claims(claims: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in claims:
        points = f"{one['points']:+.2f}" if "points" in one else ""
        rows.append([one["claim"], points, f"{one['spread']:.2f}" if points else "", one["verdict"]])
    note = "\nA row of one seed is held against the largest spread of the rows that have several.\n"
    return markdown(["the paper's finding", "difference, points", "largest spread", "here"], rows) + note


def _disagreement(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    rates, names = found["rates"], [name for name in TITLES if name in found["rates"]]
    rows = [[TITLES[name], *(f"{rates[name][other]:.3f}" for other in names)] for name in names]
    told = {name: rates[name]["teacher"] for name in ("baseline", "class", "distillation", "fused")}
    nearest = min(told, key=lambda name: told[name])
    return (
        "## Who decides differently (the paper's Table 4)\n\n"
        + markdown(["", *(TITLES[name] for name in names)], rows)
        + f"\nNearest to the teacher: {TITLES[nearest]} ({told[nearest]:.3f}); the paper's: distillation head."
    )


def _tokens(found: dict[str, Any]) -> str:
    if not found:
        return ""
    rows = [
        [row, f"{one['learned']:.3f}", *(f"{value:.3f}" for value in (one["layers"][0], one["layers"][-1]))]
        for row, one in found.items()
    ]
    paper = ["the paper's, DeiT-B, token", "0.06", "", "0.93"]
    head = ["row", "as learned", "at the input", "after the last block"]
    return (
        "## Cosine of class and distillation token (section 4)\n\n"
        + markdown(head, [*rows, paper])
        + "\nOf two class tokens the paper says that they converge to one vector (cosine .999)."
    )


def _cost(found: dict[str, Any]) -> str:
    measured = found["trainings"] | ({"labelling": found["label"]} if found["label"] else {})
    rows = []
    for name, one in measured.items():
        if cost := one.get("cost"):
            rows.append([name, f"{cost['cpu_seconds'] / 60:.1f}", f"{cost['seconds'] / 60:.1f}"])
    labels = found["label"]
    note = f"\n{labels['decisions']:,} labelled views, {labels['bytes']:,} bytes with all logits.\n" if labels else ""
    head = ["stage", "CPU minutes of its process", "minutes by the clock"]
    return markdown(head, rows) + note + "Trainings share the machine with other work where the two columns differ.\n"


def _how(found: dict[str, Any]) -> str:
    about = found["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    host = f"{about['cores']} cores ({about['processor']}), python {about['python']}"
    return f"Commit {found['commit']}; {host}; {libraries}."


def picture(found: dict[str, Any]) -> Image.Image:
    """Top-1 by epoch and loss by epoch of the first seeds, and the matrix of disagreement, one below the other."""
    pages = []
    top1 = [
        Series(line.title, points)
        for line in LINES
        if (points := _points(found["trainings"].get(f"{line.row}-0", {}), line.head))
    ]
    if top1:
        about = "On all test images, first seeds, after so many epochs of training."
        pages.append(chart("Top-1 by epoch", about, top1, x="epochs", y="top-1, %"))
    losses = [Series(name.removesuffix("-0"), points) for name, points in found["losses"].items() if points]
    if losses:
        about = "Cross-entropy of the class head on the mixed views it trains on: the term that all rows share."
        pages.append(chart("Class loss by epoch", about, losses, x="epochs", y="class loss"))
    if found["disagreement"]:
        rates = found["disagreement"]["rates"]
        names = [name for name in TITLES if name in rates]
        matrix = np.array([[rates[name][other] for other in names] for name in names])
        about = "Share of test images for which two decide differently."
        pages.append(heat_map("Disagreement", about, [TITLES[name] for name in names], matrix))
    return stacked(pages)


def stacked(pages: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other; an empty one where there are none."""
    width, height = max((one.width for one in pages), default=1), sum(one.height for one in pages) or 1
    whole, top = Image.new("RGB", (width, height), PAPER), 0
    for one in pages:
        whole.paste(one, (0, top))
        top += one.height
    return whole


def _points(measured: dict[str, Any], head: str) -> list[tuple[float, float]]:
    found = sorted((int(epoch), heads) for epoch, heads in measured.get("top1", {}).items())
    return [(float(epoch), 100 * heads[head]) for epoch, heads in found if head in heads]
