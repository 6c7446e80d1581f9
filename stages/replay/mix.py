"""Blend the views of a pair on the model's device: the same function for teacher and student.

Legend: B views of a batch, U = B / 2 pairs of them, H = W image side, C channels. Views come in the stream's
order [a b a b …], so a view's partner is its neighbour. Views stay uint8 until here, because teacher
and student may normalise differently; mixing acts on normalised floats, as in DeiT (mixup: Zhang et al.
2017; CutMix: Yun et al. 2019).
"""

from functools import cache
from typing import NamedTuple

import numpy as np
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
    return normalise_by(views_BHWC, *constants(mean, std, views_BHWC.shape[2], views_BHWC.device))


def normalise_by(views_BHWC: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`normalise` by its constants, of a row each: a compiled function takes them as they are and fuses what follows.

    Works on complete rows, since a processor's vectors do not reach beyond the three channels of a pixel.
    """
    rows = views_BHWC.flatten(2).float().mul_(scale).sub_(shift)
    return rows.unflatten(2, (views_BHWC.shape[2], -1)).permute(0, 3, 1, 2)


@cache
@torch.inference_mode(False)
def constants(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale and shift of a row, copied to the device once: a copy in every step would wait for the step before."""
    scale = 1.0 / (255.0 * torch.tensor(std, device=device))
    shift = torch.tensor(mean, device=device) / torch.tensor(std, device=device)
    return scale.repeat(width), shift.repeat(width)


def mix(images_BCHW: Tensor, mixes: Mix) -> Tensor:
    """Mix every image with its neighbour: λ·own + (1-λ)·partner, then the partner's box pasted over it."""
    pairs = images_BCHW.unflatten(0, (-1, 2))
    partners = pairs.flip(1)
    blended = torch.lerp(partners, pairs, mixes.blend[:, None, None, None, None].to(pairs.dtype))
    top, left, bottom, right = mixes.box[:, :, None].unbind(1)
    along_H = torch.arange(pairs.shape[3], device=pairs.device)
    along_W = torch.arange(pairs.shape[4], device=pairs.device)
    inside_UH, inside_UW = (along_H >= top) & (along_H < bottom), (along_W >= left) & (along_W < right)
    inside = (inside_UH[:, :, None] & inside_UW[:, None, :])[:, None, None]
    return torch.where(inside, partners, blended).flatten(0, 1)


def normalised_mix(views_BHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...], mixes: Mix) -> Tensor:
    """`mix` of `normalise`, to the bit: float32 images [B, C, H, W], channels last in memory.

    On a CPU pair by pair, in the processor's cache, and with no arithmetic beyond what mixing changes: CutMix moves
    uint8 pixels. The result is numpy's memory, in huge pages: a batch of 256 in pages of 4 KB costs more in page faults
    than its arithmetic.
    """
    if views_BHWC.device.type != "cpu":
        return mix(normalise(views_BHWC, mean, std), mixes)
    scale, shift = constants(mean, std, views_BHWC.shape[2], views_BHWC.device)
    mixed_BHWC = torch.from_numpy(np.empty(tuple(views_BHWC.shape), np.float32))
    pair = torch.empty((2, *views_BHWC.shape[1:]))
    blends, boxes = mixes.blend.tolist(), mixes.box.tolist()
    for views, mixed, blend, box in zip(views_BHWC.split(2), mixed_BHWC.split(2), blends, boxes, strict=True):
        images = mixed if blend == 1.0 else pair
        images.flatten(2).copy_(_swapped(views, box).flatten(2)).mul_(scale).sub_(shift)
        if images is pair:
            torch.lerp(pair[1], pair[0], blend, out=mixed[0])
            torch.lerp(pair[0], pair[1], blend, out=mixed[1])
    return mixed_BHWC.permute(0, 3, 1, 2)


def _swapped(views: Tensor, box: list[int]) -> Tensor:
    """A pair's views [2, H, W, C] with the box of each in the other; themselves where the box is empty."""
    top, left, bottom, right = box
    if top == bottom or left == right:
        return views
    swapped = views.clone()
    swapped[:, top:bottom, left:right] = views.flip(0)[:, top:bottom, left:right]
    return swapped
