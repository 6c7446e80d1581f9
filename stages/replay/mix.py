"""Blend the views of a pair on the model's device: the same function for teacher and student.

Legend: B views of a batch, U = B / 2 pairs of them, H = W image side, C channels. Views come in the stream's
order [a b a b …], so a view's partner is its neighbour. Views stay uint8 until here, because teacher
and student may normalise differently; mixing acts on normalised floats, as in DeiT (mixup: Zhang et al.
2017; CutMix: Yun et al. 2019).
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Mix(NamedTuple):
    """Decided mixes of a batch.

    Attributes:
        lam: own share of the label, float32 [U]; the partner has the rest.
        blend: own share of every pixel outside the box, float32 [U]; 1 under CutMix.
        box: top, left, bottom, right of the pasted box in pixels, int32 [U, 4]; empty under mixup.
    """

    lam: Tensor
    blend: Tensor
    box: Tensor


def normalise(views_BHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 views [B, H, W, C] → float32 images [B, C, H, W] (channels last in memory), zero mean and unit variance."""
    return normalise_by(views_BHWC, *constants(mean, std, views_BHWC.device))


def normalise_by(views_BHWC: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`normalise` by its constants, float32 [3]: a compiled function takes them as they are and fuses what follows."""
    return (views_BHWC.float() * scale - shift).permute(0, 3, 1, 2)


@cache
@torch.inference_mode(False)
def constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift of `normalise`, copied to the device once: a copy in each step would wait for the step before."""
    scale = 1.0 / (255.0 * torch.tensor(std, device=device))
    return scale, torch.tensor(mean, device=device) / torch.tensor(std, device=device)


def mix(images_BCHW: Tensor, how: Mix) -> Tensor:
    """Mix every image with its neighbour: λ·own + (1-λ)·partner, then the partner's box pasted over it."""
    pairs = images_BCHW.unflatten(0, (-1, 2))
    partners = pairs.flip(1)
    blended = torch.lerp(partners, pairs, how.blend[:, None, None, None, None].to(pairs.dtype))
    top, left, bottom, right = how.box[:, :, None].unbind(1)
    along_H = torch.arange(pairs.shape[3], device=pairs.device)
    along_W = torch.arange(pairs.shape[4], device=pairs.device)
    inside_UH, inside_UW = (along_H >= top) & (along_H < bottom), (along_W >= left) & (along_W < right)
    inside = (inside_UH[:, :, None] & inside_UW[:, None, :])[:, None, None]
    return torch.where(inside, partners, blended).flatten(0, 1)
