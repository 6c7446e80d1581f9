"""From views to a network's heads: normalised, mixed, resized where it takes another side, in its precision.

On a GPU all of that is one function, so that a compiler makes one pass of it over the views, where the eager way takes
six over float32. On a CPU images are made pair by pair in the processor's cache before the function is called.

Legend: B views, S side of a view.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stages.models.classifier import Classifier, Heads
from stages.models.precision import Precision
from stages.replay.mix import Mix, constants, mix, normalise, normalise_by, normalised_mix


class FromViews(nn.Module):
    """A network that takes views; to be called with what `given` makes of them.

    Args:
        model: the network.
        precision: in which it computes.
        side: of the images that it takes, in pixels; 0 = the views'.
    """

    def __init__(self, model: Classifier, precision: Precision, side: int = 0) -> None:
        super().__init__()
        self.model, self.precision, self.side = model, precision, side

    def given(self, views_BHWC: Tensor, mixes: Mix | None) -> tuple[Tensor | Mix | None, ...]:
        """The arguments of `forward` for uint8 views [B, S, S, 3] on its device, and how they are mixed, if at all."""
        mean, std = self.model.mean, self.model.std
        if views_BHWC.device.type != "cpu":
            return views_BHWC, mixes, *constants(mean, std, views_BHWC.shape[2], views_BHWC.device)
        return (normalise(views_BHWC, mean, std) if mixes is None else normalised_mix(views_BHWC, mean, std, mixes),)

    def forward(
        self, given: Tensor, mixes: Mix | None = None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Heads:
        """Heads for uint8 views [B, S, S, 3] with the constants to normalise them, or for ready images [B, 3, S, S]."""
        if scale is not None and shift is not None:
            given = normalise_by(given, scale, shift)
        if mixes is not None:
            given = mix(given, mixes)
        with self.precision.autocast():
            heads: Heads = self.model(_resized(given, self.side))
        return heads


def _resized(images_BCHW: Tensor, side: int) -> Tensor:
    """Images with another side, bicubic and antialiased, channels last in memory; as they are where they have it."""
    if side in (0, images_BCHW.shape[-1]):
        return images_BCHW
    resized = interpolate(images_BCHW, size=(side, side), mode="bicubic", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)
