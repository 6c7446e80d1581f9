"""Figures of DeiT's paper (Touvron et al. 2021, arXiv 2012.12877 v2) that are shown beside measured ones.

Code that prints one of them labels it as the paper's. They were checked against the paper's text, table by table.
"""

from typing import NamedTuple

CREDIT = "Touvron et al. 2021"


class PaperRow(NamedTuple):
    """A row of Table 5; accuracies in percent, images a second on one V100 of 16 GB, None = not given.

    Attributes:
        images_per_second: throughput at the largest batch, mean of 30 runs.
        top1: on ImageNet's validation split, of both heads fused where there are two.
        real: on ImageNet-Real.
        v2: on ImageNet-V2, matched frequency.
    """

    images_per_second: float
    top1: float
    real: float | None
    v2: float | None


TABLE_5: dict[tuple[str, int], PaperRow] = {
    ("resnet18", 224): PaperRow(4458.4, 69.8, 77.3, 57.1),
    ("resnet50", 224): PaperRow(1226.1, 76.2, 82.5, 63.3),
    ("resnet101", 224): PaperRow(753.6, 77.4, 83.7, 65.7),
    ("resnet152", 224): PaperRow(526.4, 78.3, 84.1, 67.0),
    ("regnety_040", 224): PaperRow(1156.7, 80.0, 86.4, 69.4),
    ("regnety_080", 224): PaperRow(591.6, 81.7, 87.4, 70.8),
    ("regnety_160", 224): PaperRow(334.7, 82.9, 88.1, 72.4),
    ("efficientnet_b0", 224): PaperRow(2694.3, 77.1, 83.5, 64.3),
    ("efficientnet_b1", 240): PaperRow(1662.5, 79.1, 84.9, 66.9),
    ("efficientnet_b2", 260): PaperRow(1255.7, 80.1, 85.9, 68.8),
    ("efficientnet_b3", 300): PaperRow(732.1, 81.6, 86.8, 70.6),
    ("efficientnet_b4", 380): PaperRow(349.4, 82.9, 88.0, 72.3),
    ("deit_tiny_patch16_224", 224): PaperRow(2536.5, 72.2, 80.1, 60.4),
    ("deit_small_patch16_224", 224): PaperRow(940.4, 79.8, 85.7, 68.5),
    ("deit_base_patch16_224", 224): PaperRow(292.3, 81.8, 86.7, 71.5),
    ("deit_base_patch16_384", 384): PaperRow(85.9, 83.1, 87.7, 72.4),
    ("deit_tiny_distilled_patch16_224", 224): PaperRow(2529.5, 74.5, 82.1, 62.9),
    ("deit_small_distilled_patch16_224", 224): PaperRow(936.2, 81.2, 86.8, 70.0),
    ("deit_base_distilled_patch16_224", 224): PaperRow(290.9, 83.4, 88.3, 73.2),
    ("deit_base_distilled_patch16_384", 384): PaperRow(85.8, 84.5, 89.0, 74.8),
}
"""By timm's name without its tag, and the side in pixels; distilled ones after 300 epochs."""

TABLE_3: dict[str, dict[str, float]] = {
    "deit_tiny_distilled_patch16_224": {"class": 73.9, "distillation": 74.6, "fused": 74.5},
    "deit_small_distilled_patch16_224": {"class": 80.9, "distillation": 81.1, "fused": 81.2},
    "deit_base_distilled_patch16_224": {"class": 83.0, "distillation": 83.1, "fused": 83.4},
}
"""Top-1 in percent of a distilled student's heads after 300 epochs at 224 pixels."""

TABLE_4: dict[str, tuple[float, ...]] = {
    "truth": (0.000, 0.171, 0.182, 0.170, 0.169, 0.166),
    "teacher": (0.171, 0.000, 0.133, 0.112, 0.100, 0.102),
    "baseline": (0.182, 0.133, 0.000, 0.109, 0.110, 0.107),
    "class": (0.170, 0.112, 0.109, 0.000, 0.050, 0.033),
    "distillation": (0.169, 0.100, 0.110, 0.050, 0.000, 0.019),
    "fused": (0.166, 0.102, 0.107, 0.033, 0.019, 0.000),
}
"""Rates of different decisions, the columns in the order of the rows: RegNetY-16GF, DeiT-B, distilled DeiT-B."""

TOKENS = {"learned": 0.06, "last": 0.93}
"""Section 4: mean cosine of class and distillation token as they were learned, and at the last layer."""
