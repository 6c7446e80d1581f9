"""Decide: an address becomes plain numbers, all randomness of a view.

A view's address (shard, row, view) gives one block of uniforms; each choice reads its own place in it, so
switching one augmentation off changes no other. Distributions are timm 1.0.31's for DeiT. What is
decided can be printed, stored and compared. Rejected: sampling inside the transforms, where a
choice depends on the order of the calls before it.
"""

import math
from dataclasses import dataclass

from schemas.recipe import Recipe
from stages.replay.draws import Draws, Purpose
from stages.replay.policies import Op, policy_of

__all__ = ["Box", "DecidedMix", "DecidedView", "Decider", "Erase", "Op"]

_ATTEMPTS = 10  # tries of a box before giving up, for crops and erasing alike
_BOX_WORDS = 2 * _ATTEMPTS + 2
_FLIP = _BOX_WORDS
_ERASE = _FLIP + 1
_ERASE_BOX = _ERASE + 1
_OPS = _ERASE_BOX + _BOX_WORDS


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels: rows [top, top + height), columns [left, left + width)."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Erase:
    """An erased box of the finished view.

    Attributes:
        box: in pixels of the view.
        noise: (seed, shard, row, view), the address of the normal noise that fills it; None = the mean colour.
    """

    box: Box
    noise: tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class DecidedView:
    """Everything random about one view: crop (pixels of the source), flip, ops in order, erased box."""

    crop: Box
    flip: bool
    ops: tuple[Op, ...]
    erase: Erase | None


@dataclass(frozen=True, slots=True)
class DecidedMix:
    """How the two views of a pair are mixed.

    Attributes:
        lam: a member's own share of its mixed view, of which the other has 1 - lam; 1.0 = not mixed.
        box: CutMix's box in pixels of the view, pasted both ways, whose area lam already counts; None = mixup.
    """

    lam: float
    box: Box | None


class Decider:
    """Decides the views and mixes of one recipe; holds no state that a decision depends on."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._policy = policy_of(recipe)
        self._view_draws = Draws(recipe.seed, Purpose.VIEW)
        self._mix_draws = Draws(recipe.seed, Purpose.MIX)
        self._crop_log_ratio = (math.log(recipe.ratio[0]), math.log(recipe.ratio[1]))
        self._erase_log_ratio = (math.log(recipe.erasing_ratio[0]), math.log(recipe.erasing_ratio[1]))

    def view(self, shard: int, row: int, view: int, height: int, width: int) -> DecidedView:
        """Decide view number `view` of sample (shard, row), an image of height × width pixels."""
        draws = self._view_draws.at(shard, row, view).uniforms(_OPS + self._policy.words)
        erase = None
        if draws[_ERASE] < self._recipe.erasing_prob and (box := self._erased_box(draws[_ERASE_BOX:_OPS])):
            noise = (self._recipe.seed, shard, row, view) if self._recipe.erasing_mode == "pixel" else None
            erase = Erase(box, noise)
        return DecidedView(
            crop=self._crop(draws, height, width),
            flip=draws[_FLIP] < self._recipe.flip_prob,
            ops=self._policy(draws[_OPS:]),
            erase=erase,
        )

    def mix(self, shard: int, pair: int, view: int) -> DecidedMix:
        """Decide how the members of pair `pair` of a shard are mixed in their views number `view`.

        mixup: Zhang et al. 2018; CutMix: Yun et al. 2019; one of the two, as in timm's mode "pair".
        """
        recipe = self._recipe
        if not recipe.mixes:
            return DecidedMix(1.0, None)
        mixed, switch, y, x = self._mix_draws.at(shard, pair, view).uniforms(4)
        if mixed >= recipe.mix_prob:
            return DecidedMix(1.0, None)
        if recipe.cutmix_alpha == 0 or (recipe.mixup_alpha > 0 and switch >= recipe.switch_prob):
            return DecidedMix(self._mix_draws.beta(recipe.mixup_alpha), None)
        return _cutmix(recipe.image_size, self._mix_draws.beta(recipe.cutmix_alpha), y, x)

    def _crop(self, draws: list[float], height: int, width: int) -> Box:
        """A box of random area and log-uniform width / height; the largest allowed central one if none fits."""
        low, high = self._recipe.scale
        log_low, log_high = self._crop_log_ratio
        for at in range(0, 2 * _ATTEMPTS, 2):
            area = (low + (high - low) * draws[at]) * (height * width)
            ratio = math.exp(log_low + (log_high - log_low) * draws[at + 1])
            w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
            if w <= width and h <= height:
                return _place(draws, 2 * _ATTEMPTS, h, w, height, width)
        narrow, wide = self._recipe.ratio
        h = max(1, min(height, round(width / narrow)))
        w = max(1, min(width, round(height * wide)))
        return Box((height - h) // 2, (width - w) // 2, h, w)

    def _erased_box(self, draws: list[float]) -> Box | None:
        """A box of random area and log-uniform height / width inside the view (Zhong et al. 2020), if one fits."""
        size = self._recipe.image_size
        low, high = self._recipe.erasing_area
        log_low, log_high = self._erase_log_ratio
        for at in range(0, 2 * _ATTEMPTS, 2):
            area = (low + (high - low) * draws[at]) * (size * size)
            ratio = math.exp(log_low + (log_high - log_low) * draws[at + 1])
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w < size and h < size:
                return _place(draws, 2 * _ATTEMPTS, h, w, size, size) if h and w else None
        return None


def _place(draws: list[float], at: int, h: int, w: int, height: int, width: int) -> Box:
    """Put an h × w box anywhere inside height × width, from the two numbers at `at`."""
    return Box(int(draws[at] * (height - h + 1)), int(draws[at + 1] * (width - w + 1)), h, w)


def _cutmix(size: int, lam: float, y: float, x: float) -> DecidedMix:
    """A box of area (1 - lam) around a random pixel, clipped to the view; lam becomes the area left."""
    side = int(size * math.sqrt(1.0 - lam))
    centre_y, centre_x = int(y * size), int(x * size)
    top, left = max(0, centre_y - side // 2), max(0, centre_x - side // 2)
    height = min(size, centre_y + (side + 1) // 2) - top
    width = min(size, centre_x + (side + 1) // 2) - left
    if height <= 0 or width <= 0:
        return DecidedMix(1.0, None)
    return DecidedMix(1.0 - height * width / (size * size), Box(top, left, height, width))
