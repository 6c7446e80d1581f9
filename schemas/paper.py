"""Figures of DeiT's paper (Touvron et al. 2021, arXiv 2012.12877 v2) that are shown beside measured ones.

Code that prints one of them labels it as the paper's. They were checked against the paper's text, table by table.
"""

from typing import NamedTuple

CREDIT = "Touvron et al. 2021"


class PaperRow(NamedTuple):
    """A row of Table 5; accuracies in percent, images a second on one V100 of 16 GB, None = not given.

    Attributes:
        name: what the paper calls it.
        model: timm's name of the network, without a tag.
        image_size: side in pixels.
        images_per_second: throughput at the largest batch, mean of 30 runs.
        top1: on ImageNet's validation split, of both heads fused where there are two.
        real: on ImageNet-Real.
        v2: on ImageNet-V2, matched frequency.
    """

    name: str
    model: str
    image_size: int
    images_per_second: float
    top1: float
    real: float | None
    v2: float | None


TABLE_5 = (
    PaperRow("ResNet-18", "resnet18", 224, 4458.4, 69.8, 77.3, 57.1),
    PaperRow("ResNet-50", "resnet50", 224, 1226.1, 76.2, 82.5, 63.3),
    PaperRow("ResNet-101", "resnet101", 224, 753.6, 77.4, 83.7, 65.7),
    PaperRow("ResNet-152", "resnet152", 224, 526.4, 78.3, 84.1, 67.0),
    PaperRow("RegNetY-4GF", "regnety_040", 224, 1156.7, 80.0, 86.4, 69.4),
    PaperRow("RegNetY-8GF", "regnety_080", 224, 591.6, 81.7, 87.4, 70.8),
    PaperRow("RegNetY-16GF", "regnety_160", 224, 334.7, 82.9, 88.1, 72.4),
    PaperRow("EfficientNet-B0", "efficientnet_b0", 224, 2694.3, 77.1, 83.5, 64.3),
    PaperRow("EfficientNet-B1", "efficientnet_b1", 240, 1662.5, 79.1, 84.9, 66.9),
    PaperRow("EfficientNet-B2", "efficientnet_b2", 260, 1255.7, 80.1, 85.9, 68.8),
    PaperRow("EfficientNet-B3", "efficientnet_b3", 300, 732.1, 81.6, 86.8, 70.6),
    PaperRow("EfficientNet-B4", "efficientnet_b4", 380, 349.4, 82.9, 88.0, 72.3),
    PaperRow("EfficientNet-B5", "efficientnet_b5", 456, 169.1, 83.6, 88.3, 73.6),
    PaperRow("EfficientNet-B6", "efficientnet_b6", 528, 96.9, 84.0, 88.8, 73.9),
    PaperRow("EfficientNet-B7", "efficientnet_b7", 600, 55.1, 84.3, None, None),
    PaperRow("EfficientNet-B5 RA", "efficientnet_b5", 456, 96.9, 83.7, None, None),
    PaperRow("EfficientNet-B7 RA", "efficientnet_b7", 600, 55.1, 84.7, None, None),
    PaperRow("KDforAA-B8", "efficientnet_b8", 800, 25.2, 85.8, None, None),
    PaperRow("ViT-B/16", "vit_base_patch16_384", 384, 85.9, 77.9, 83.6, None),
    PaperRow("ViT-L/16", "vit_large_patch16_384", 384, 27.3, 76.5, 82.2, None),
    PaperRow("DeiT-Ti", "deit_tiny_patch16_224", 224, 2536.5, 72.2, 80.1, 60.4),
    PaperRow("DeiT-S", "deit_small_patch16_224", 224, 940.4, 79.8, 85.7, 68.5),
    PaperRow("DeiT-B", "deit_base_patch16_224", 224, 292.3, 81.8, 86.7, 71.5),
    PaperRow("DeiT-B 384", "deit_base_patch16_384", 384, 85.9, 83.1, 87.7, 72.4),
    PaperRow("DeiT-Ti distilled", "deit_tiny_distilled_patch16_224", 224, 2529.5, 74.5, 82.1, 62.9),
    PaperRow("DeiT-S distilled", "deit_small_distilled_patch16_224", 224, 936.2, 81.2, 86.8, 70.0),
    PaperRow("DeiT-B distilled", "deit_base_distilled_patch16_224", 224, 290.9, 83.4, 88.3, 73.2),
    PaperRow("DeiT-Ti distilled, 1000 epochs", "deit_tiny_distilled_patch16_224", 224, 2529.5, 76.6, 83.9, 65.4),
    PaperRow("DeiT-S distilled, 1000 epochs", "deit_small_distilled_patch16_224", 224, 936.2, 82.6, 87.8, 71.7),
    PaperRow("DeiT-B distilled, 1000 epochs", "deit_base_distilled_patch16_224", 224, 290.9, 84.2, 88.7, 73.9),
    PaperRow("DeiT-B distilled 384", "deit_base_distilled_patch16_384", 384, 85.8, 84.5, 89.0, 74.8),
    PaperRow("DeiT-B distilled 384, 1000 epochs", "deit_base_distilled_patch16_384", 384, 85.8, 85.2, 89.3, 75.2),
)
"""All rows, in the paper's order. Rows of one network and size differ in their training (RA: RandAugment, KDforAA)."""


def table_5(model: str, image_size: int = 0) -> tuple[PaperRow, ...]:
    """The rows of a network, by timm's name with or without a tag; 0 = of every size."""
    name = model.partition(".")[0].removeprefix("tf_")
    return tuple(row for row in TABLE_5 if row.model == name and image_size in (0, row.image_size))


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
