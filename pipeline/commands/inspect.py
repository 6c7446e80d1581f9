"""Inspect as a command runs it: opens stored files, reports missing ones, writes the picture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipeline.execution.devices import compiled, run_device, settled
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.manifests import LabelManifest
from schemas.paths import local_path
from stages.data.split import Split
from stages.inspect.agreement import KINDS, agreement_lines, class_agreement, draw_agreement, shown_classes
from stages.inspect.contact_sheet import draw_sheet, names_on_sheet
from stages.inspect.views import as_json, find_sample, inspect_views, readable
from stages.label.label_set import LabelSet
from stages.label.stability import stability as compare
from stages.plotting.fonts import escaped_note
from stages.storage.manifest import read_manifest

Say = Callable[[str], None]


def views(config: RunFile, sample: str, count: int, out: str, say: Say) -> dict[str, Any]:
    """Draw a train sample's first views, with the teacher's decisions where the label set has them.

    Returns:
        The same as numbers.

    Raises:
        UserError: if there are no shards or no such sample, or the picture cannot be written.
    """
    file = local_path(out, "--out")
    split = Split.open(config.workspace, "train", config.cache)
    address = find_sample(split, sample)
    labels, missing = _labels(config, split)
    if missing:
        say(f"without the teacher's decisions: {missing}")
    shown, made = inspect_views(split, config.views, labels, address, count)
    teacher = f"{config.teacher.title}, set {config.labels.name}" if labels else "none for these views"
    names = readable(split.classes)
    _save(draw_sheet(shown, made, config.views, names, [("labels", teacher)]), file)
    _say_escaped(names_on_sheet(shown, made, names), say)
    say(f"{count} views of sample {shown.number} → {out}")
    return {"inspect": "views", "out": out, "labels": config.labels.name if labels else None} | as_json(
        shown, made, split.classes
    )


def labels(config: RunFile, out: str, say: Say) -> dict[str, Any]:
    """Print and draw how far decisions agree with the truth, class by class, and by what margins.

    Returns:
        The same as numbers.

    Raises:
        UserError: if shards or labels are missing, or the picture cannot be written.
    """
    file = local_path(out, "--out")
    split = Split.open(config.workspace, "train")
    opened = LabelSet.open(config, split)
    manifest = read_manifest(opened.store, LabelManifest)
    assert manifest is not None, "the set was opened by it"
    by_class = class_agreement(opened, split, config.views)
    names = readable(split.classes)
    title = f"labels {config.labels.name}: {config.teacher.title}"
    _save(draw_agreement(title, by_class, names, manifest), file)
    _say_escaped([names[number] for number in shown_classes(by_class)], say)
    for line in agreement_lines(by_class, names, manifest):
        say(line)
    say(f"→ {out}")
    keys = ("agreement", "mixed_agreement", "margins", "near_ties")
    summary = {key: getattr(manifest, key) for key in keys}
    counts = [dict(zip(KINDS, row, strict=True)) for row in by_class.tolist()]
    return {"inspect": "labels", "out": out, **summary, "classes": dict(zip(split.classes, counts, strict=True))}


def stability(config: RunFile, views: int, say: Say) -> dict[str, Any]:
    """Say how many decisions flip in other precisions and batch sizes.

    Returns:
        `baseline` and, for each other setting, the fields of `stages.label.stability.stability`.

    Raises:
        UserError: if there are no shards, or the teacher cannot be had.
    """
    config, split = compiled(settled(config)), Split.open(config.workspace, "train")
    report = compare(config, split, torch.device(run_device(config)), views)
    baseline = {"precision": "fp32", "batch_size": config.teacher.batch_size, "decisions": report[0]["decisions"]}
    say(
        f"{config.teacher.title}, {baseline['decisions']} views, against fp32 in batches of "
        f"{config.teacher.batch_size}:"
    )
    say(
        f"{'precision':>10}{'batch':>7}{'flipped':>9}{'share':>8}{'median margin':>15}{'largest':>9}{'logit moved':>13}"
    )
    for one in report:
        margins = [f"{one[name]:.4f}" if one["flipped"] else "-" for name in ("median_margin", "largest_margin")]
        say(
            f"{one['precision']:>10}{one['batch_size']:>7}{one['flipped']:>9}{one['share']:>8.2%}{margins[0]:>15}"
            f"{margins[1]:>9}{one['largest_difference']:>13.2g}"
        )
    return {"inspect": "stability", "baseline": baseline, "ways": report}


def _save(picture: Image.Image, out: Path) -> None:
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out}: cannot be written ({error}); name a .png in a folder that exists") from None


def _say_escaped(names: Sequence[str], say: Say) -> None:
    if note := escaped_note(names):
        say(note)


def _labels(config: RunFile, split: Split) -> tuple[LabelSet | None, str]:
    """The run file's label set if it is complete and of these views, else why not."""
    try:
        return LabelSet.open(config, split), ""
    except UserError as error:
        return None, str(error)
