""""""

import hashlib
import json
import math
from dataclasses import asdict
from typing import Any

import pytest

from schemas.errors import UserError
from schemas.recipe import Recipe
from stages.replay.decide import Decider
from tests.support.views import HEIGHT, SIZE, WIDTH, our_views


def test_a_decision_depends_on_its_address_alone() -> None:
    addresses = [(shard, row, view) for shard in range(3) for row in range(20) for view in range(3)]
    forwards, backwards = Decider(Recipe()), Decider(Recipe())
    expected = {address: (forwards.view(*address, HEIGHT, WIDTH), forwards.mix(*address)) for address in addresses}
    for address in reversed(addresses):
        assert (backwards.view(*address, HEIGHT, WIDTH), backwards.mix(*address)) == expected[address]
    assert len({repr(decision) for decision in expected.values()}) == len(addresses)
    other = Decider(Recipe(seed=1))
    assert all(other.view(*address, HEIGHT, WIDTH) != expected[address][0] for address in addresses)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rand_augment": "", "color_jitter": 0.0}, "ops"),
        ({"rand_augment": "", "auto_augment": "v0"}, "ops"),
        ({"erasing_prob": 0.0}, "erase"),
        ({"flip_prob": 0.0}, "flip"),
        ({"scale": (1.0, 1.0)}, "crop"),
    ],
    ids=str,
)
def test_switching_one_augmentation_off_changes_no_other(changes: dict[str, Any], field: str) -> None:
    pairs = [(asdict(one), asdict(other)) for one, other in zip(our_views(500), our_views(500, **changes), strict=True)]
    assert any(one[field] != other[field] for one, other in pairs)
    for one, other in pairs:
        assert {**one, field: None} == {**other, field: None}


@pytest.mark.parametrize("off", ["rand_augment", "erasing_prob", "flip_prob", "mix_prob", "alphas"])
def test_each_augmentation_has_its_switch(off: str) -> None:
    changes: dict[str, Any] = {
        "rand_augment": {"rand_augment": "", "color_jitter": 0.0},
        "alphas": {"mixup_alpha": 0.0, "cutmix_alpha": 0.0},
    }.get(off, {off: 0.0})
    views = our_views(300, **changes)
    mixes = [Decider(Recipe(**changes)).mix(0, pair, 0) for pair in range(300)]
    assert any(view.ops for view in views) == (off != "rand_augment")
    assert any(view.erase for view in views) == (off != "erasing_prob")
    assert any(view.flip for view in views) == (off != "flip_prob")
    assert any(mix.lam < 1 for mix in mixes) == (off not in ("mix_prob", "alphas"))


def test_decisions_are_plain_data_and_stay_as_they_are() -> None:
    """Labels name decisions by their address: whoever changes this digest makes every label set stale."""
    decider, cutmix = Decider(Recipe()), Decider(Recipe(rand_augment="", auto_augment="v0", erasing_mode="const"))
    lines = []
    for row in range(200):
        record = [asdict(one.view(3, row, 5, HEIGHT, WIDTH)) for one in (decider, cutmix)]
        record.append(asdict(decider.mix(3, row, 5)))
        lines.append(json.dumps(json.loads(json.dumps(record), parse_float=lambda text: round(float(text), 9))))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == "2b94584c6b669fee"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 900), (900, 1), (2, 3), (40, 4000), (5000, 60)])
def test_crops_lie_inside_images_of_any_shape(height: int, width: int) -> None:
    decider = Decider(Recipe())
    for row in range(300):
        box = decider.view(0, row, 0, height, width).crop
        assert 0 <= box.top < box.top + box.height <= height
        assert 0 <= box.left < box.left + box.width <= width


def test_a_crop_that_never_fits_is_the_largest_central_one_of_an_allowed_shape() -> None:
    wide = Decider(Recipe(scale=(1.0, 1.0))).view(0, 0, 0, 100, 1000).crop
    tall = Decider(Recipe(scale=(1.0, 1.0))).view(0, 0, 0, 1000, 100).crop
    assert (wide.top, wide.left, wide.height, wide.width) == (0, 433, 100, 133)
    assert (tall.top, tall.left, tall.height, tall.width) == (433, 0, 133, 100)


def test_lam_is_the_area_that_the_clipped_box_leaves() -> None:
    decider = Decider(Recipe(mixup_alpha=0.0))
    mixes = [decider.mix(0, pair, 0) for pair in range(2000)]
    boxes = [mix.box for mix in mixes if mix.box]
    assert any(min(box.top, box.left) == 0 for box in boxes)
    assert all(box.top + box.height <= SIZE and box.left + box.width <= SIZE for box in boxes)
    for mix in mixes:
        left = SIZE * SIZE - (mix.box.height * mix.box.width if mix.box else 0)
        assert math.isclose(mix.lam, left / (SIZE * SIZE))


def test_erased_boxes_lie_inside_the_view_and_name_their_noise() -> None:
    decider = Decider(Recipe(erasing_prob=1.0, seed=9))
    for row in range(500):
        erase = decider.view(2, row, 4, HEIGHT, WIDTH).erase
        assert erase and erase.noise == (9, 2, row, 4)
        assert erase.box.top + erase.box.height <= SIZE and erase.box.left + erase.box.width <= SIZE


@pytest.mark.parametrize("text", ["rand-m9-m8", "rand-m9-mstd0.5-mstd0.5"])
def test_an_option_given_twice_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="given twice"):
        Decider(Recipe(rand_augment=text))
