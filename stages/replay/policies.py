"""Policies: which operations a view gets and how strong they are, from numbers drawn elsewhere.

RandAugment (Cubuk et al. 2020), AutoAugment (Cubuk et al. 2019) and colour jitter, with the op lists,
level functions and ImageNet policies of timm 1.0.31, so that labels mean what DeiT's authors meant.
A policy consumes a fixed count of uniforms whatever it chooses. Rejected: calling timm's own
classes, which read Python's and numpy's global generators.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from schemas.errors import UserError
from schemas.recipe import Recipe

TOP_LEVEL = 10.0  # magnitudes are 0 to 10 unless mmax is set


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on a view.

    Attributes:
        name: a key of `LEVELS` below, without its variants: "rotate", "posterize", "color", …
        level: what the operation takes: degrees counter-clockwise (rotate), bits kept (posterize), threshold
            (solarize), levels added below 128 (solarize_add), factor with 1 = no change (color,
            contrast, brightness, sharpness), slope (shear_x, shear_y), share of the side (translate_x,
            translate_y); None where it takes nothing (autocontrast, equalize, invert).
    """

    name: str
    level: float | None


class Policy(Protocol):
    """Turns `words` uniforms into the operations of one view."""

    words: int

    def __call__(self, draws: list[float]) -> tuple[Op, ...]:
        """Decide from `words` numbers in [0, 1)."""
        ...


Level = Callable[[float, float], float | None]


def _nothing(magnitude: float, sign: float) -> None:
    return None


def _signed(top: float) -> Level:
    return lambda magnitude, sign: sign * magnitude / 10 * top


def _enhance(magnitude: float, sign: float) -> float:
    return magnitude / 10 * 1.8 + 0.1


def _enhance_increasing(magnitude: float, sign: float) -> float:
    return max(0.1, 1.0 + sign * magnitude / 10 * 0.9)


# timm's names of (op, level function): magnitude and sign (±1) -> level
LEVELS: dict[str, tuple[str, Level]] = {
    "AutoContrast": ("autocontrast", _nothing),
    "Equalize": ("equalize", _nothing),
    "Invert": ("invert", _nothing),
    "Rotate": ("rotate", _signed(30.0)),
    "Posterize": ("posterize", lambda magnitude, sign: int(magnitude / 10 * 4)),
    "PosterizeIncreasing": ("posterize", lambda magnitude, sign: max(0, 4 - int(magnitude / 10 * 4))),
    "PosterizeOriginal": ("posterize", lambda magnitude, sign: int(magnitude / 10 * 4) + 4),
    "Solarize": ("solarize", lambda magnitude, sign: min(256, int(magnitude / 10 * 256))),
    "SolarizeIncreasing": ("solarize", lambda magnitude, sign: 256 - min(256, int(magnitude / 10 * 256))),
    "SolarizeAdd": ("solarize_add", lambda magnitude, sign: min(128, int(magnitude / 10 * 110))),
    "Color": ("color", _enhance),
    "ColorIncreasing": ("color", _enhance_increasing),
    "Contrast": ("contrast", _enhance),
    "ContrastIncreasing": ("contrast", _enhance_increasing),
    "Brightness": ("brightness", _enhance),
    "BrightnessIncreasing": ("brightness", _enhance_increasing),
    "Sharpness": ("sharpness", _enhance),
    "SharpnessIncreasing": ("sharpness", _enhance_increasing),
    "ShearX": ("shear_x", _signed(0.3)),
    "ShearY": ("shear_y", _signed(0.3)),
    "TranslateXRel": ("translate_x", _signed(0.45)),
    "TranslateYRel": ("translate_y", _signed(0.45)),
}

_COMMON = [
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "SolarizeAdd",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
]
_GRADED = ["Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"]
_RAND_OPS = {0: [*_COMMON, *_GRADED], 1: [*_COMMON, *(f"{name}Increasing" for name in _GRADED)]}

# ImageNet policies: 25 pairs of (op, probability, magnitude), one pair a line
_AUTO_AUGMENT = {
    "original": """
        PosterizeOriginal .4 8 Rotate .6 9
        Solarize .6 5 AutoContrast .6 5
        Equalize .8 8 Equalize .6 3
        PosterizeOriginal .6 7 PosterizeOriginal .6 6
        Equalize .4 7 Solarize .2 4
        Equalize .4 4 Rotate .8 8
        Solarize .6 3 Equalize .6 7
        PosterizeOriginal .8 5 Equalize 1 2
        Rotate .2 3 Solarize .6 8
        Equalize .6 8 PosterizeOriginal .4 6
        Rotate .8 8 Color .4 0
        Rotate .4 9 Equalize .6 2
        Equalize 0 7 Equalize .8 8
        Invert .6 4 Equalize 1 8
        Color .6 4 Contrast 1 8
        Rotate .8 8 Color 1 2
        Color .8 8 Solarize .8 7
        Sharpness .4 7 Invert .6 8
        ShearX .6 5 Equalize 1 9
        Color .4 0 Equalize .6 3
        Equalize .4 7 Solarize .2 4
        Solarize .6 5 AutoContrast .6 5
        Invert .6 4 Equalize 1 8
        Color .6 4 Contrast 1 8
        Equalize .8 8 Equalize .6 3""",
    "v0": """
        Equalize .8 1 ShearY .8 4
        Color .4 9 Equalize .6 3
        Color .4 1 Rotate .6 8
        Solarize .8 3 Equalize .4 7
        Solarize .4 2 Solarize .6 2
        Color .2 0 Equalize .8 8
        Equalize .4 8 SolarizeAdd .8 3
        ShearX .2 9 Rotate .6 8
        Color .6 1 Equalize 1 2
        Invert .4 9 Rotate .6 0
        Equalize 1 9 ShearY .6 3
        Color .4 7 Equalize .6 0
        Posterize .4 6 AutoContrast .4 7
        Solarize .6 8 Color .6 9
        Solarize .2 4 Rotate .8 9
        Rotate 1 7 TranslateYRel .8 9
        ShearX 0 0 Solarize .8 4
        ShearY .8 0 Color .6 4
        Color 1 0 Rotate .6 2
        Equalize .8 4 Equalize 0 8
        Equalize 1 4 AutoContrast .6 2
        ShearY .4 7 SolarizeAdd .6 7
        Posterize .8 2 Solarize .6 10
        Solarize .6 8 Equalize .6 1
        Color .8 6 Rotate .4 5""",
}


def policy_of(recipe: Recipe) -> Policy:
    """The policy of a recipe: RandAugment, AutoAugment, or colour jitter where both are off.

    Raises:
        UserError: if the RandAugment string repeats an option or holds one that is not known.
    """
    if recipe.rand_augment:
        return RandAugment(recipe.rand_augment)
    if recipe.auto_augment:
        return AutoAugment(recipe.auto_augment)
    return ColorJitter(recipe.color_jitter)


class RandAugment:
    """n ops drawn with replacement, each applied with probability p (Cubuk et al. 2020; timm's variants)."""

    def __init__(self, text: str) -> None:
        options = _options(text)
        self._magnitude = float(options.get("m", 10))
        self._deviation = float(options.get("mstd", 0))
        self._top = float(options.get("mmax", 0)) or TOP_LEVEL
        self._probability = float(options.get("p", 0.5))
        self._ops = [LEVELS[name] for name in _RAND_OPS[int(options.get("inc", 0))]]
        self.words = 5 * int(options.get("n", 2))

    def __call__(self, draws: list[float]) -> tuple[Op, ...]:
        """Five numbers for each op: choice, application, two for the magnitude, sign."""
        ops = []
        for at in range(0, self.words, 5):
            choice, applied, first, second, sign = draws[at : at + 5]
            if applied < self._probability:
                name, level = self._ops[int(choice * len(self._ops))]
                ops.append(Op(name, level(self._draw_magnitude(first, second), _sign(sign))))
        return tuple(ops)

    def _draw_magnitude(self, first: float, second: float) -> float:
        magnitude = self._magnitude
        if self._deviation > 100:  # timm's spelling of "uniform"
            magnitude *= first
        elif self._deviation > 0:
            normal = math.sqrt(-2.0 * math.log(1.0 - first)) * math.cos(2.0 * math.pi * second)
            magnitude += self._deviation * normal
        return max(0.0, min(magnitude, self._top))


class AutoAugment:
    """One of 25 learnt pairs of ops, each op with its own probability and magnitude (Cubuk et al. 2019)."""

    words = 5

    def __init__(self, name: str) -> None:
        if name not in _AUTO_AUGMENT:
            raise UserError(f"views.auto_augment: unknown policy {name!r}; allowed: {', '.join(_AUTO_AUGMENT)}")
        self._pairs = []
        for line in _AUTO_AUGMENT[name].strip().splitlines():
            first, p, m, second, q, k = line.split()
            self._pairs.append(((LEVELS[first], float(p), float(m)), (LEVELS[second], float(q), float(k))))

    def __call__(self, draws: list[float]) -> tuple[Op, ...]:
        """One number chooses the pair; then application and sign of each op."""
        pair = self._pairs[int(draws[0] * len(self._pairs))]
        return tuple(
            Op(name, level(magnitude, _sign(sign)))
            for ((name, level), probability, magnitude), applied, sign in zip(
                pair, draws[1::2], draws[2::2], strict=True
            )
            if applied < probability
        )


class ColorJitter:
    """Brightness, contrast and saturation in random order, factors uniform in 1 ± strength; 0 = no ops."""

    words = 4
    _ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    _NAMES = ("brightness", "contrast", "color")

    def __init__(self, strength: float) -> None:
        self._strength = strength

    def __call__(self, draws: list[float]) -> tuple[Op, ...]:
        """One number chooses the order; then a factor for each."""
        if not self._strength:
            return ()
        order = self._ORDERS[int(draws[0] * 6)]
        return tuple(Op(self._NAMES[i], 1.0 + self._strength * (2.0 * draws[1 + i] - 1.0)) for i in order)


def _sign(draw: float) -> float:
    return -1.0 if draw > 0.5 else 1.0


def _options(text: str) -> dict[str, str]:
    """Split "rand-m9-mstd0.5" into {"m": "9", "mstd": "0.5"}."""
    options: dict[str, str] = {}
    head, *parts = text.split("-")
    for part in parts:
        key = part.rstrip("0123456789.").removesuffix("inf")
        if head != "rand" or key not in ("m", "n", "p", "mstd", "mmax", "inc") or key in options:
            raise UserError(
                f"views.rand_augment = {text!r}: {part!r} is unknown or given twice; "
                "allowed, each once: m, n, p, mstd, mmax, inc"
            )
        options[key] = part.removeprefix(key)
    return options
