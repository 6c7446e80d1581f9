"""Disagreement: how often two predictors choose different classes for one image (paper, Table 4).

Predictors are the truth, the teacher, a student without distillation, and the heads of a distilled student. All are
counted from stored predictions for the same images in the same order.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from schemas import paper
from schemas.errors import UserError
from stages.evaluate.predictions import Predictions
from stages.plotting.charts import heat_map, markdown

TITLES = {
    "truth": "ground truth",
    "teacher": "teacher",
    "baseline": "student without distillation",
    "class": "class head",
    "distillation": "distillation head",
    "fused": "both heads fused",
}
"""Deciders in the order of the table; fused is the mean of logits."""
_ABOUT = "Share of images for which two deciders name different classes."


def predictors(teacher: Predictions, student: Predictions, baseline: Predictions | None) -> dict[str, np.ndarray]:
    """What each decides, int64 [N], in the order of `TITLES`.

    Raises:
        UserError: if the student has one head only.
    """
    if "distillation" not in student.top:
        raise UserError(
            "evaluate --disagreement: this student has one head; name a run with a distillation token by train.name"
        )
    found = {"truth": student.classes, "teacher": teacher.top["class"][:, 0]}
    if baseline is not None:
        found["baseline"] = baseline.top["class"][:, 0]
    return found | {head: student.top[head][:, 0] for head in ("class", "distillation", "fused")}


def disagreement(decisions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rates of different decisions, float64 [n, n]: symmetric, 0 on the diagonal."""
    each = list(decisions.values())
    return np.array([[float(np.mean(one != other)) for other in each] for one in each])


def as_json(names: list[str], rates: np.ndarray) -> dict[str, Any]:
    """Decider by decider, the rates as fractions from 0 to 1."""
    return {one: dict(zip(names, row, strict=True)) for one, row in zip(names, rates.tolist(), strict=True)}


def table(names: list[str], rates: np.ndarray) -> str:
    """The rates in Markdown, and below them the paper's."""
    head = ["", *(TITLES[name] for name in names)]
    mine = [[TITLES[name], *(f"{rate:.3f}" for rate in row)] for name, row in zip(names, rates.tolist(), strict=True)]
    places = list(paper.TABLE_4)
    theirs = [[TITLES[name], *(f"{paper.TABLE_4[name][places.index(other)]:.3f}" for other in names)] for name in names]
    return (
        f"{_ABOUT}\n\n{markdown(head, mine)}\n"
        f"The paper's ({paper.CREDIT}, Table 4: RegNetY-16GF, DeiT-B and its distilled DeiT-B on ImageNet):\n\n"
        f"{markdown(head, theirs)}"
    )


def draw(title: str, names: list[str], rates: np.ndarray) -> Image.Image:
    """The rates as a heat map."""
    return heat_map(title, _ABOUT, [TITLES[name] for name in names], rates)
