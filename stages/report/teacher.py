"""The teacher's decisions: how far they agree with the truth, by what margins, and what views look like."""

from collections.abc import Sequence

import numpy as np

from schemas.manifests import LabelManifest
from schemas.recipe import Recipe
from stages.data.split import Split
from stages.inspect.agreement import KINDS, class_agreement, shown_classes
from stages.inspect.captions import VERDICTS
from stages.inspect.contact_sheet import draw_sheet, names_on_sheet
from stages.inspect.views import find_sample, inspect_views, readable
from stages.label.label_set import LabelSet
from stages.label.margins import EDGES
from stages.plotting.fonts import escaped_note
from stages.report.blocks import Block, Section, Table, Text, picture
from stages.report.charts import histogram

_VIEWS = 4


def agreement_section(labels: LabelSet, manifest: LabelManifest, split: Split, recipe: Recipe) -> Section:
    """Agreement over all views and by class, and the histogram of margins.

    Raises:
        UserError: if a label file is not what was stored.
    """
    counts = class_agreement(labels, split, recipe)
    facts = [
        ("views of each image", f"{manifest.views:,}"),
        ("unmixed centre crops named right", f"{manifest.agreement:.1%}"),
        ("decisions within rounding of a tie", f"{manifest.near_ties:.3%}"),
        ("quantiles of margins", ", ".join(f"{name} {value:.3f}" for name, value in manifest.margins.items())),
    ]
    blocks: list[Block] = [Table((), facts), *_by_class(counts, readable(split.classes))]
    title = "Margins: the largest logit less the second"
    blocks.append(histogram(title, manifest.margin_counts, EDGES.tolist(), x="margin (logarithmic bins)"))
    return Section("teacher", "The teacher's decisions", blocks)


def _by_class(counts: np.ndarray, names: Sequence[str]) -> list[Block]:
    """Shares of mixed views by whose class is named: over all, and of the classes at both ends."""
    ends = shown_classes(counts)
    titled = [("all classes", counts.sum(0)), *((names[number], counts[number]) for number in ends)]
    shares = [(row / row.sum()).tolist() for _, row in titled]
    legend = [VERDICTS[kind][1] for kind in KINDS]
    rows = [
        (name, f"{row.sum():,}", *(f"{share:.1%}" for share in one))
        for (name, row), one in zip(titled, shares, strict=True)
    ]
    title = "Whose class the teacher names on mixed views" + (
        "" if len(ends) == np.count_nonzero(counts.sum(1)) else ", classes at both ends"
    )
    return [Table(("class", "views", *legend), rows, title, shares, legend)]


def views_section(labels: LabelSet | None, split: Split, recipe: Recipe, teacher: str) -> Section:
    """Contact sheets of two samples' first views.

    Raises:
        UserError: if an image or a label file is not what was stored.
    """
    blocks: list[Block] = []
    names = readable(split.classes)
    for number in sorted({0, len(split) // 2}):
        sample, views = inspect_views(split, recipe, labels, find_sample(split, str(number)), _VIEWS)
        sheet = draw_sheet(sample, views, recipe, names, [("labels", teacher)])
        blocks.append(picture(f"Sample {sample.number}, {names[sample.label]}: views 0 to {_VIEWS - 1}", sheet))
        if note := escaped_note(names_on_sheet(sample, views, names)):
            blocks.append(Text(note[0].upper() + note[1:] + "."))
    return Section("views", "Views", blocks)
