"""The recipe: everything that turns a sample into its views.

It is the `[views]` table of the run file. Together with an address (shard, row, view) it fixes every
pixel of a view, so it is part of the identity of label sets and runs. Defaults are DeiT's (Touvron et
al. 2021, Table 9 and the authors' code).
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ROTATION = 2
"""Version of a rotation's pixels: 2 = no pixel of the view's rim is mixed with the fill; 1 had no key."""

Probability = Annotated[float, Field(ge=0, le=1)]
_RAND_AUGMENT = re.compile(r"rand(-(m\d+(\.\d+)?|n\d+|p\d+(\.\d+)?|mstd(\d+(\.\d+)?|inf)|mmax\d+|inc[01]))*")


class Table(BaseModel):
    """A table of the run file: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Recipe(Table):
    """How a sample becomes views."""

    image_size: int = Field(224, ge=8, le=4096, description="side of a view in pixels")
    repeats: int = Field(3, ge=1, le=64, description="views of a sample in one pass (repeated augmentation); 1 = none")
    scale: tuple[float, float] = Field((0.08, 1.0), description="range of a crop's share of the image's area")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="range of a crop's width / height")
    flip_prob: Probability = Field(0.5, description="probability of a horizontal flip")
    rand_augment: str = Field(
        "rand-m9-mstd0.5-inc1", description='timm\'s string, with m, n, p, mstd, mmax and inc; "" = off'
    )
    auto_augment: Literal["", "original", "v0"] = Field(
        "", description="AutoAugment's ImageNet policy in place of RandAugment (paper, Table 8)"
    )
    color_jitter: float = Field(
        0.3, ge=0, le=1, description="brightness, contrast and saturation jitter; acts only where both above are off"
    )
    erasing_prob: Probability = Field(0.25, description="probability of erasing one box")
    erasing_mode: Literal["pixel", "const"] = Field(
        "pixel", description="fill of the erased box: normal noise for each pixel, or the mean colour"
    )
    erasing_area: tuple[float, float] = Field((0.02, 1 / 3), description="range of the erased share of the view")
    erasing_ratio: tuple[float, float] = Field((0.3, 1 / 0.3), description="range of the erased box's height / width")
    mixup_alpha: float = Field(0.8, ge=0, le=100, description="mixup's Beta(alpha, alpha); 0 = off")
    cutmix_alpha: float = Field(1.0, ge=0, le=100, description="CutMix's Beta(alpha, alpha); 0 = off")
    mix_prob: Probability = Field(1.0, description="probability that a pair is mixed at all")
    switch_prob: Probability = Field(0.5, description="probability of CutMix where both are on")
    seed: int = Field(0, ge=0, lt=2**32, description="names one of the recipe's possible sets of views")

    @field_validator("scale", "ratio", "erasing_area", "erasing_ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two positive numbers, the smaller first")
        return value

    @field_validator("scale", "erasing_area")
    @classmethod
    def _share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("must be shares of an area, at most 1")
        return value

    @field_validator("rand_augment")
    @classmethod
    def _known_string(cls, value: str) -> str:
        if value and not _RAND_AUGMENT.fullmatch(value):
            raise ValueError(
                'must be "" or timm\'s form, such as "rand-m9-mstd0.5-inc1" (options: m, n, p, mstd, mmax, inc)'
            )
        return value

    @model_validator(mode="after")
    def _one_policy(self) -> "Recipe":
        if self.rand_augment and self.auto_augment:
            raise ValueError('auto_augment: set rand_augment = "" to use AutoAugment in its place')
        return self

    @property
    def mixes(self) -> bool:
        """Whether any pair can be mixed."""
        return self.mix_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def identity(self) -> dict[str, Any]:
        """What determines the pixels of views: every field, and the version of what renders them.

        Recipes that never rotate keep the identity, and the label sets, of 0.1.
        """
        rotation = {"rotation": ROTATION} if self.rand_augment or self.auto_augment else {}
        return self.model_dump(mode="json") | rotation
