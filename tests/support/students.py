"""A small student, quick to build."""

from stages.models.classifier import Classifier, build

TINY = {"depth": 4, "embed_dim": 96, "num_heads": 3, "patch_size": 8}


def tiny(
    distilled: bool = True, *, num_classes: int = 10, img_size: int = 32, drop_path: float = 0.0, **extra
) -> Classifier:
    name = "deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224"
    return build(name, num_classes=num_classes, img_size=img_size, drop_path=drop_path, extra=TINY | extra)
