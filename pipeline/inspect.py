"""Inspect as a command runs it: opens what is stored, says what is missing, writes the picture."""

from collections.abc import Callable
from typing import Any

from schemas.config import RunFile
from schemas.errors import PipelineError
from stages.dataset import Split
from stages.inspect import as_json, find_sample, inspect_views, readable
from stages.labelset import LabelSet
from stages.sheet import draw_sheet

Say = Callable[[str], None]


def views(run: RunFile, sample: str, count: int, out: str, say: Say) -> dict[str, Any]:
    """Draw a train sample's first views, with the teacher's decisions where the label set has them.

    Returns:
        The same as numbers.

    Raises:
        PipelineError: if there are no shards or no such sample, or the picture cannot be written.
    """
    split = Split.open(run.workspace, "train", run.cache)
    address = find_sample(split, sample)
    labels, missing = _labels(run, split)
    if missing:
        say(f"without the teacher's decisions: {missing}")
    shown, made = inspect_views(split, run.views, labels, address, count)
    teacher = f"{run.teacher.title}, set {run.labels.name}" if labels else "none for these views"
    picture = draw_sheet(shown, made, run.views, readable(split.classes), [("labels", teacher)])
    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise PipelineError(f"--out {out}: cannot be written ({error}); name a .png in a folder that exists") from None
    say(f"{count} views of sample {shown.number} → {out}")
    return {"inspect": "views", "out": out, "labels": run.labels.name if labels else None} | as_json(
        shown, made, split.classes
    )


def _labels(run: RunFile, split: Split) -> tuple[LabelSet | None, str]:
    """The run file's label set if it is whole and of these views, else why not."""
    try:
        return LabelSet.open(run, split), ""
    except PipelineError as error:
        return None, str(error)
