"""20,000 decisions are distributed as those of timm and torchvision."""

import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import auto_augment, mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from schemas.recipe import Recipe
from stages.replay.decide import Decider
from stages.replay.policies import LEVELS
from tests.support.views import HEIGHT, SIZE, WIDTH, our_views

COUNT = 20_000
DISAGREE = 1e-4  # smallest p-value of up to 80 comparisons below which two samples are not of one distribution
Samples = dict[str, Any]


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# Our samples and timm's, under the same names


def our_crops(**changes: Any) -> Samples:
    crops = [view.crop for view in our_views(COUNT, **changes)]
    return crop_samples([(crop.top, crop.left, crop.height, crop.width) for crop in crops])


def timm_crops() -> Samples:
    image = SimpleNamespace(size=(WIDTH, HEIGHT))
    recipe = Recipe()
    draw = RandomResizedCropAndInterpolation.get_params
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.data.transforms.F.get_image_size", lambda one: list(one.size))
        return crop_samples([draw(image, recipe.scale, recipe.ratio) for _ in range(2 * COUNT)])


def crop_samples(boxes: list[tuple[int, int, int, int]]) -> Samples:
    top, left, height, width = np.array(boxes, float).T
    return {"area": height * width, "log ratio": np.log(width / height), "top": top, "left": left}


def our_flips(**changes: Any) -> Samples:
    return {"flip": np.array([view.flip for view in our_views(COUNT, **changes)], float)}


def fair_flips() -> Samples:
    return {"flip": (np.random.rand(10 * COUNT) < 0.5).astype(float)}


def our_ops(**changes: Any) -> Samples:
    return op_samples([[(op.name, op.level) for op in view.ops] for view in our_views(COUNT, **changes)])


def timm_ops(text: str = "rand-m9-mstd0.5-inc1") -> Samples:
    """What timm's policy does to an image, recorded in place of being done."""
    done: list[tuple[str, float | None]] = []
    draw: Any = (
        auto_augment.rand_augment_transform(text) if "rand" in text else auto_augment.auto_augment_transform(text)
    )
    for op in draw.ops if "rand" in text else [op for pair in draw.policy for op in pair]:
        op.aug_fn = lambda image, level=None, *, name=LEVELS[op.name][0], **_: done.append((name, level))
    views = []
    for _ in range(COUNT):
        draw(None)
        views.append(list(done))
        done.clear()
    return op_samples(views)


def op_samples(views: list[list[tuple[str, float | None]]]) -> Samples:
    """Ops of a view in order; each op's levels, bits from 0 to 8; the magnitude of all that have a sign."""
    samples: Samples = {"ops": Counter("+".join(name for name, _ in view) for view in views)}
    samples["count"] = np.array([len(view) for view in views], float)
    for name in sorted({name for name, _ in LEVELS.values()}):
        levels = [level for view in views for op, level in view if op == name and level is not None]
        if levels:
            samples[name] = np.clip(levels, 0, 8) if name == "posterize" else np.array(levels, float)
    scales = {"rotate": 30, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}
    if found := [np.abs(samples[op]) / top for op, top in scales.items() if op in samples]:
        samples["magnitude"] = np.concatenate(found)
    return samples


def our_erased(**changes: Any) -> Samples:
    boxes = [view.erase.box for view in our_views(COUNT, **{"erasing_prob": 1.0, **changes}) if view.erase]
    return erased_samples([(box.top, box.left, box.height, box.width) for box in boxes])


def timm_erased() -> Samples:
    class Canvas:
        def __init__(self) -> None:
            self.boxes: list[tuple[int, int, int, int]] = []

        def __setitem__(self, key: tuple[slice, slice, slice], value: object) -> None:
            _, rows, columns = key
            self.boxes.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))

    canvas, eraser = Canvas(), RandomErasing(probability=1.0, mode="const", device="cpu")
    for _ in range(2 * COUNT):
        eraser._erase(canvas, 3, SIZE, SIZE, torch.float32)
    return erased_samples(canvas.boxes)


def erased_samples(boxes: list[tuple[int, int, int, int]]) -> Samples:
    top, left, height, width = np.array(boxes, float).T
    return {"area": height * width, "log ratio": np.log(height / width), "top": top, "left": left}


def our_gate(**changes: Any) -> Samples:
    return {"erased": np.array([view.erase is not None for view in our_views(2 * COUNT, **changes)], float)}


def timm_gate() -> Samples:
    return {"erased": (np.random.rand(10 * COUNT) < 0.25).astype(float)}


def our_mixes(count: int = COUNT, **changes: Any) -> Samples:
    decider = Decider(Recipe(**changes))
    mixes = [decider.mix(pair // 500, pair % 500, pair % 7) for pair in range(count)]
    boxes = [(mix.box.top, mix.box.left, mix.box.height, mix.box.width) for mix in mixes if mix.box]
    return mix_samples([mix.lam for mix in mixes], boxes)


def timm_mixes(**changes: Any) -> Samples:
    recipe = Recipe(**changes)
    mixer = mixup.Mixup(recipe.mixup_alpha, recipe.cutmix_alpha, None, recipe.mix_prob, recipe.switch_prob, mode="pair")
    lams, use_cutmix = mixer._params_per_elem(2 * COUNT)
    boxes = []
    for nth in np.flatnonzero(use_cutmix & (lams < 1)):
        (yl, yh, xl, xh), lam = mixup.cutmix_bbox_and_lam((3, SIZE, SIZE), lams[nth])
        lams[nth] = lam
        if lam < 1:
            boxes.append((yl, xl, yh - yl, xh - xl))
    return mix_samples(lams.tolist(), boxes)


def mix_samples(lams: list[float], boxes: list[tuple[int, int, int, int]]) -> Samples:
    samples: Samples = {"lam": np.array(lams), "cutmix": np.arange(len(lams)) < len(boxes)}
    for name, values in zip(("top", "left", "height", "width"), np.array(boxes, float).T, strict=False):
        samples[name] = values
    return samples


# The statistic


def disagreement(ours: Samples, theirs: Samples) -> float:
    """The smallest p-value of all comparisons; 0 where one side has something the other has not."""
    if ours.keys() != theirs.keys():
        return 0.0
    return min(compare(ours[name], theirs[name]) for name in ours)


def compare(ours: Any, theirs: Any) -> float:
    if isinstance(ours, Counter):
        return compare_counts(ours, theirs)
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if np.ptp(np.concatenate([ours, theirs])) < 1e-9:
        return 1.0
    if len(np.unique(theirs)) <= 2:
        return compare_shares(ours == theirs.max(), theirs == theirs.max())
    low, middle, high = np.quantile(theirs, [0.005, 0.5, 0.995])
    return min(
        stats.ks_2samp(ours, theirs, method="asymp").pvalue,
        stats.ttest_ind(ours, theirs, equal_var=False).pvalue,
        stats.ttest_ind((ours - middle) ** 2, (theirs - middle) ** 2, equal_var=False).pvalue,
        compare_shares(ours < low, theirs < low),
        compare_shares(ours > high, theirs > high),
    )


def compare_shares(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(stats.fisher_exact([[one.sum(), len(one) - one.sum()] for one in (ours, theirs)]).pvalue)


def compare_counts(ours: Counter[str], theirs: Counter[str]) -> float:
    common = [key for key in theirs if theirs[key] >= 20]
    table = np.array(
        [[one[key] for key in common] + [one.total() - sum(one[key] for key in common)] for one in (ours, theirs)]
    )
    return float(stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue)


BOTH: dict[str, tuple[Callable[..., Samples], Callable[[], Samples]]] = {
    "crops": (our_crops, timm_crops),
    "flips": (our_flips, fair_flips),
    "ops": (our_ops, timm_ops),
    "erased": (our_erased, timm_erased),
    "gate": (our_gate, timm_gate),
    "mixes": (our_mixes, timm_mixes),
    "cutmixes": (
        lambda **changes: our_mixes(2 * COUNT, mixup_alpha=0.0, **changes),
        lambda: timm_mixes(mixup_alpha=0.0),
    ),
    "mixups": (lambda **changes: our_mixes(cutmix_alpha=0.0, **changes), lambda: timm_mixes(cutmix_alpha=0.0)),
}


@pytest.fixture(scope="module")
def theirs() -> dict[str, Samples]:
    random.seed(1)
    np.random.seed(1)
    return {name: sample() for name, (_, sample) in BOTH.items()}


@pytest.mark.parametrize("kind", BOTH)
def test_20000_decisions_are_distributed_as_those_of_timm(kind: str, theirs: dict[str, Samples]) -> None:
    assert disagreement(BOTH[kind][0](), theirs[kind]) > DISAGREE


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("crops", {"scale": (0.08, 0.95)}),
        ("crops", {"ratio": (3 / 4, 4 / 3 * 1.05)}),
        ("crops", {"ratio": (3 / 4 / 1.05, 4 / 3)}),
        ("flips", {"flip_prob": 0.525}),
        ("ops", {"rand_augment": "rand-m9.45-mstd0.5-inc1"}),
        ("ops", {"rand_augment": "rand-m8.55-mstd0.5-inc1"}),
        ("ops", {"rand_augment": "rand-m9-mstd0.5-inc1-p0.525"}),
        ("ops", {"rand_augment": "rand-m9-mstd0.5"}),
        ("erased", {"erasing_area": (0.02, 1 / 3 * 1.05)}),
        ("erased", {"erasing_area": (0.02, 1 / 3 / 1.05)}),
        ("erased", {"erasing_ratio": (0.3, 1 / 0.3 * 1.05)}),
        ("gate", {"erasing_prob": 0.2625}),
        ("mixes", {"mix_prob": 0.95}),
        ("mixes", {"switch_prob": 0.525}),
        ("cutmixes", {"image_size": 235}),
    ],
    ids=str,
)
def test_the_statistic_notices_a_range_that_is_off_by_five_per_cent(
    kind: str, changes: dict[str, Any], theirs: dict[str, Samples]
) -> None:
    assert disagreement(BOTH[kind][0](**changes), theirs[kind]) < DISAGREE


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ops", {"rand_augment": "rand-m9-mstd0.55-inc1"}),
        ("mixups", {"mixup_alpha": 0.88}),
        ("mixups", {"mixup_alpha": 0.72}),
        ("cutmixes", {"cutmix_alpha": 1.1}),
    ],
    ids=str,
)
def test_the_statistic_notices_a_shape_that_is_off_by_ten_per_cent(
    kind: str, changes: dict[str, Any], theirs: dict[str, Samples]
) -> None:
    assert disagreement(BOTH[kind][0](**changes), theirs[kind]) < DISAGREE


@pytest.mark.parametrize(
    "text", ["rand", "rand-m5-n3-p0.8-mstd1-mmax6-inc0", "rand-m20-mmax30-mstd4-inc1", "rand-m7-mstd101", "rand-n1-p1"]
)
def test_every_option_of_a_rand_augment_string_means_what_it_means_to_timm(text: str) -> None:
    assert disagreement(our_ops(rand_augment=text), timm_ops(text)) > DISAGREE


@pytest.mark.parametrize("name", ["original", "v0"])
def test_auto_augment_draws_the_pairs_of_timm(name: str) -> None:
    ours = our_ops(rand_augment="", auto_augment=name)
    theirs = timm_ops(name)
    assert disagreement(ours, theirs) > DISAGREE
    assert {level for op in ours if op in dict(LEVELS.values()) for level in np.round(ours[op], 9)} == {
        level for op in theirs if op in dict(LEVELS.values()) for level in np.round(theirs[op], 9)
    }


def test_colour_jitter_draws_factors_and_orders_of_torchvision() -> None:
    ours = our_ops(rand_augment="", color_jitter=0.4)
    jitter, views = ColorJitter(0.4, 0.4, 0.4), []
    for _ in range(COUNT // 2):
        order, *factors, _ = ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None)
        named = list(zip(("brightness", "contrast", "color"), factors, strict=True))
        views.append([named[nth] for nth in order.tolist() if nth < 3])
    theirs = op_samples(views)
    assert disagreement(ours, theirs) > DISAGREE
    assert disagreement(our_ops(rand_augment="", color_jitter=0.42), theirs) < DISAGREE


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_those_of_timm_at_every_magnitude(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_level = auto_augment.LEVEL_TO_ARG[name]
    for sign in (1.0, -1.0):
        monkeypatch.setattr(random, "random", lambda sign=sign: 0.25 if sign > 0 else 0.75)
        for magnitude in np.linspace(0, 12, 121):
            expected = timm_level(magnitude, {}) if timm_level else (None,)
            level = LEVELS[name][1](magnitude, sign)
            if LEVELS[name][0] == "posterize":  # both keep everything from 8 bits up and nothing from 0 down
                level, expected = np.clip(level, 0, 8), (np.clip(expected[0], 0, 8),)
            assert level == (expected[0] if expected[0] is None else pytest.approx(expected[0], abs=1e-12)), magnitude
