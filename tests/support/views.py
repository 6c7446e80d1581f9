"""Views as the project decides them, to compare with timm's."""

from typing import Any

from schemas.recipe import Recipe
from stages.replay.decide import DecidedView, Decider

HEIGHT, WIDTH, SIZE = 375, 500, 224


def our_views(count: int, **changes: Any) -> list[DecidedView]:
    decider = Decider(Recipe(**changes))
    return [decider.view(row // 1000, row % 1000, row % 7, HEIGHT, WIDTH) for row in range(count)]
