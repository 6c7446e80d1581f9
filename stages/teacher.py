"""The teacher: a network in eval mode that decides on mixed views, and what names it.

It sees the very images the student will see: replayed, normalised its own way, mixed. Its identity goes into the
label set, so that decisions of two teachers, or of one teacher in two precisions, are never mistaken for each other.
"""

from typing import Any

import torch
from torch import Tensor

from schemas import config
from schemas.errors import PipelineError
from stages.labelset import teacher_settings
from stages.replay.mix import Mix, mix, normalise
from stages.student import build, load_weights
from stages.weights import find_weights, pretrained_weights, weights_digest

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher:
    """A timm classifier with fixed weights on a device.

    Args:
        settings: the run file's `[teacher]`.
        workspace: where `run:NAME` checkpoints are found.
        num_classes: of the shards.
        image_size: side of the views.
        device: where it runs.

    Raises:
        PipelineError: if the weights cannot be had or are not for this architecture and these classes.
    """

    def __init__(
        self, settings: config.Teacher, *, workspace: str, num_classes: int, image_size: int, device: torch.device
    ) -> None:
        self.settings = settings
        model = build(settings.model, num_classes=num_classes, img_size=image_size, drop_path=0.0, extra=settings.extra)
        if settings.checkpoint:
            source = f"teacher.checkpoint = {settings.checkpoint}"
            weights = find_weights(settings.checkpoint, workspace, "teacher.checkpoint")
        else:
            source = f"teacher.model = {settings.model}"
            weights = pretrained_weights(settings.model)
        load_weights(model, weights, source=source)
        self.model = model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self.device = device
        self.mean, self.std = model.mean, model.std
        self.weights_sha256 = weights_digest(model.model.state_dict())

    def identity(self) -> dict[str, Any]:
        """All that determines its decisions, besides the views."""
        return teacher_settings(self.settings) | {
            "weights_sha256": self.weights_sha256,
            "mean": list(self.mean),
            "std": list(self.std),
            "device": self.device.type,
        }

    @torch.inference_mode()
    def logits(self, views_BHWC: Tensor, how: Mix | None) -> Tensor:
        """Logits of views, uint8 [B, S, S, 3] → float32 [B, K]; mixed where `how` is given.

        Raises:
            PipelineError: if a logit is not finite.
        """
        images = normalise(views_BHWC.to(self.device, non_blocking=True), self.mean, self.std)
        if how is not None:
            images = mix(images, Mix(*(one.to(self.device, non_blocking=True) for one in how)))
        precision = _AUTOCAST[self.settings.precision]
        with torch.autocast(self.device.type, dtype=precision, enabled=precision is not None):
            logits: Tensor = self.model(images).fused.float()
        if not torch.isfinite(logits).all():
            raise PipelineError(
                f"teacher.model = {self.settings.model}: gave a logit that is not finite; "
                f'try teacher.precision = "fp32" (now {self.settings.precision}) or check its weights'
            )
        return logits
