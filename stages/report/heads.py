"""Heads compared: accuracy, disagreement and token cosines, as evaluations beside a run hold them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stages.evaluate.disagreement import TITLES
from stages.evaluate.reports import HEADS
from stages.report.blocks import Block, Missing, Section, Table
from stages.report.charts import line_chart

Result = Mapping[str, Any]
_NAMES = {"class": "class", "distillation": "distillation", "fused": "fused", "fused_softmax": "sum of softmaxes"}


def heads_section(runs: Mapping[str, Sequence[Result]], weights: Mapping[str, Collection[str]]) -> Section:
    """Top-1 and top-5 of every head in every evaluation.

    Args:
        runs: evaluations by the run.
        weights: sums of the weights files that each run has now.
    """
    rows, blocks = [], list[Block]()
    for run, results in runs.items():
        fix = f"deit-pipeline evaluate --set train.name={run}"
        current = [one for one in results if one.get("model_sha256") in weights[run]]
        if not results:
            blocks.append(Missing(f"Run {run} is not evaluated", fix))
        elif len(current) < len(results):
            blocks.append(Missing(f"Run {run} has evaluations of other weights, which are not shown", fix))
        rows += [_head_row(run, one, head) for one in current for head in HEADS if one.get(head)]
    if rows:
        table = Table(("run", "head", "weights", "images", "crop", "top-1", "top-5"), rows)
        blocks.insert(0, table)
    return Section("heads", "Heads compared", blocks)


def _head_row(run: str, one: Result, head: str) -> tuple[str, ...]:
    crop = f"{one['image_size']} px, {one['crop_pct']:g}"
    images = f"{one['samples']:,} of {one['images']}"
    return run, _NAMES[head], one["weights"], images, crop, f"{one[head]['top1']:.2%}", f"{one[head]['top5']:.2%}"


def disagreement_section(results: Sequence[Result], run: str) -> Section:
    """The share of images for which two predictors name different classes."""
    title = "Disagreement"
    if not results:
        fix = f"deit-pipeline evaluate --disagreement --set train.name={run}"
        return Section("disagreement", title, [Missing("Disagreement is not measured", fix)])
    return Section("disagreement", title, [_rates(one) for one in results])


def _rates(one: Result) -> Table:
    rates: Mapping[str, Mapping[str, float]] = one["rates"]
    names = list(rates)
    rows = [(TITLES[name], *(f"{rates[name][other]:.1%}" for other in names)) for name in names]
    return Table(("", *(TITLES[name] for name in names)), rows, f"{one['samples']:,} images, {one['images']}")


def tokens_section(results: Sequence[Result], run: str) -> Section:
    """Cosines of class and distillation token, block by block."""
    if not results:
        fix = f"deit-pipeline evaluate --tokens --set train.name={run}"
        return Section("tokens", "Token cosines", [Missing("Token cosines are not measured", fix)])
    blocks = []
    for one in results:
        title = f"Cosine of class and distillation token, {one['samples']:,} images, {one['images']}; 0 is the input"
        points = list(range(len(one["layers"]))), one["layers"]
        blocks.append(line_chart(title, {"mean": points}, y="cosine", x="block"))
    return Section("tokens", "Token cosines", blocks)
