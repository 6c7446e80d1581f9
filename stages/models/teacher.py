"""The teacher: one network, or a mixture of them, in eval mode that decides on mixed views, and what names it.

It sees the very images the student will see: replayed, normalised its own way, mixed; then resized where a network
takes another side than the views'. Its identity goes into the
label set, so that decisions of two teachers, or of one teacher in two precisions, are never mistaken for each other.
Rejected for mixtures: the mean of logits, whose scale differs between networks.

Legend: B views, K classes, S side of a view.
"""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from schemas.config import Member, TeacherConfig
from schemas.errors import UserError
from stages.models.classifier import Classifier, Heads, build, own_size
from stages.models.from_views import FromViews
from stages.models.precision import Precision, chosen_precision
from stages.models.state_dict import load_weights
from stages.models.torch_compat import out_of_memory
from stages.models.weights import find_weights, pretrained_weights, untrained_heads, weights_digest
from stages.replay.mix import Mix


class Teacher:
    """Timm classifiers with fixed weights on a device.

    Args:
        settings: the run file's `[teacher]`.
        workspace: where `run:NAME` checkpoints are found.
        num_classes: of the shards.
        image_size: side of the views.
        device: where it runs.

    Attributes:
        sides: of the images that each network takes, in pixels.
        untrained: heads of each network that its run never trained, which decide nothing.
        batch: views that went through in one forward pass, once a larger batch did not fit memory; None = all did.

    Raises:
        UserError: if the weights cannot be had or are not for this architecture and these classes.
    """

    def __init__(
        self, settings: TeacherConfig, *, workspace: str, num_classes: int, image_size: int, device: torch.device
    ) -> None:
        precision = chosen_precision(settings.precision, "teacher", device.type)
        settings = settings.model_copy(update={"precision": precision, "compile": settings.compile is True})
        self.settings, self.device, self.num_classes = settings, device, num_classes
        self.precision = Precision(precision, device, "teacher.precision")
        members = [_member(one, workspace, num_classes, image_size) for one in settings.members]
        models, self.sides = [model for model, _ in members], [side for _, side in members]
        self.untrained = [
            untrained_heads(one.checkpoint, workspace) if model.distilled else ()
            for one, model in zip(settings.members, models, strict=True)
        ]
        self.weights_sha256 = [weights_digest(model.model.state_dict()) for model in models]
        self.models = [
            model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last) for model in models
        ]
        self._networks = [
            FromViews(model, self.precision, side) for model, side in zip(self.models, self.sides, strict=True)
        ]
        # Of one shape, to which smaller batches are padded: each other one is compiled, and searched by cuDNN, anew.
        self._one_shape = settings.compile or device.type == "cuda"
        self._run = [torch.compile(one, dynamic=False) if settings.compile else one for one in self._networks]
        self.batch: int | None = None

    def identity(self) -> dict[str, Any]:
        """All that determines its decisions, besides the views."""
        members: dict[str, list[Any]] = {
            "weights_sha256": self.weights_sha256,
            "mean": [list(model.mean) for model in self.models],
            "std": [list(model.std) for model in self.models],
            "side": self.sides,
        }
        single = {name: values[0] for name, values in members.items()} if len(self.models) == 1 else members
        untrained = {"untrained_heads": [list(one) for one in self.untrained]} if any(self.untrained) else {}
        return self.settings.identity() | single | untrained | {"device": self.device.type}

    def logits(self, views_BHWC: Tensor, mixes: Mix | None) -> Tensor:
        """Logits of views, uint8 [B, S, S, 3] → float32 [B, K]; mixed where `how` is given.

        Those of a mixture are the logarithms of the mean probabilities. A batch that does not fit memory is halved
        until it does, pairs together; in eval mode no view depends on its batch but for the last bit.

        Raises:
            UserError: if a logit is not finite, their shape is wrong, or not even a pair fits memory.
        """
        logits_BK = self.queued(views_BHWC, mixes)
        self.refuse_not_finite(bool(torch.isfinite(logits_BK).all()))
        return logits_BK

    @torch.inference_mode()
    def queued(self, views_BHWC: Tensor, mixes: Mix | None) -> Tensor:
        """`logits` that a GPU may still be computing; nobody has looked whether they are finite.

        Raises:
            UserError: if their shape is wrong, or not even a pair fits memory.
        """
        size = self.batch or len(views_BHWC)
        found = [self._fitting(views_BHWC, mixes, start, size) for start in range(0, len(views_BHWC), size)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def refuse_not_finite(self, finite: bool) -> None:
        """Raise UserError unless all of a batch's logits were finite."""
        if not finite:
            raise UserError(
                f"teacher.model = {self.settings.title}: gave a logit that is not finite; "
                f'try teacher.precision = "fp32" (now {self.settings.precision}) or check its weights'
            )

    def _fitting(self, views_BHWC: Tensor, mixes: Mix | None, start: int, size: int) -> Tensor:
        """Logits of `size` views from `start` on, in as many passes as memory demands."""
        try:
            chosen = mixes and Mix(*(one[start // 2 : (start + size) // 2] for one in mixes))
            return self._forward(views_BHWC[start : start + size], chosen)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not out_of_memory(error):
                raise
        half = min(size, len(views_BHWC) - start) // 4 * 2
        if half < 2:
            raise UserError(
                f"teacher.model = {self.settings.title}: not even one pair of views fits the {self.device.type}'s "
                "memory; use a smaller teacher, or free memory"
            )
        self.batch = half
        end = min(start + size, len(views_BHWC))
        return torch.cat([self._fitting(views_BHWC[:end], mixes, at, half) for at in range(start, end, half)])

    def _forward(self, views_BHWC: Tensor, mixes: Mix | None) -> Tensor:
        views_BHWC = views_BHWC.to(self.device, non_blocking=True)
        mixes = mixes and Mix(*(one.to(self.device, non_blocking=True) for one in mixes))
        count = len(views_BHWC)
        if self._one_shape:
            views_BHWC, mixes = _padded(views_BHWC, mixes, self.batch or self.settings.batch_size)
        with self.precision.switches(search=True):
            found = [self._member_logits(nth, views_BHWC, mixes)[:count] for nth in range(len(self.models))]
        if len(found) == 1:
            return found[0]
        return torch.stack([logits.log_softmax(1) for logits in found]).logsumexp(0) - math.log(len(found))

    def _member_logits(self, nth: int, views_BHWC: Tensor, mixes: Mix | None) -> Tensor:
        given = self._networks[nth].given(views_BHWC, mixes)
        heads: Heads = self._run[nth](*given)
        logits = heads.supported(self.untrained[nth]).float()
        expected = len(views_BHWC), self.num_classes
        if logits.shape != expected:
            raise UserError(
                f"teacher.model = {self.settings.members[nth].model}: gave logits of shape {tuple(logits.shape)}, "
                f"expected {expected}; check teacher.extra"
            )
        return logits


def _padded(views_BHWC: Tensor, mixes: Mix | None, size: int) -> tuple[Tensor, Mix | None]:
    """A batch with black views at its end, so that it has `size` of them; as it is where it has as many."""
    missing = size - len(views_BHWC)
    if missing <= 0:
        return views_BHWC, mixes
    mixes = mixes and Mix(*(pad(one, (0, 0) * (one.ndim - 1) + (0, missing // 2)) for one in mixes))
    return pad(views_BHWC, (0, 0) * 3 + (0, missing)), mixes


def _member(member: Member, workspace: str, num_classes: int, image_size: int) -> tuple[Classifier, int]:
    """A network with its weights, and the side of the images that it takes.

    A network built for one size mostly takes others too: positions are resampled. Where its weights fit no other than
    the size that timm names for them, that is its side.
    """
    if member.checkpoint:
        source = f"teacher.checkpoint = {member.checkpoint}"
        weights = find_weights(member.checkpoint, workspace, "teacher.checkpoint")
    else:
        source = f"teacher.model = {member.model}"
        weights = pretrained_weights(member.model)

    def built(side: int) -> Classifier:
        model = build(member.model, num_classes=num_classes, img_size=side, drop_path=0.0, extra=member.extra)
        load_weights(model, weights, source=source)
        return model

    side = member.input_size or image_size
    try:
        return built(side), side
    except UserError:
        own = own_size(member.model)
        if member.input_size or own in (0, side):
            raise
        with contextlib.suppress(UserError):
            return built(own), own
        raise  # what is wrong at the views' side: it fits at neither
