"""The sheet says what the pixels show, and nothing on it leaves its place."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageColor

from schemas.recipe import Recipe
from stages.inspect.captions import facts, op_words
from stages.inspect.contact_sheet import _badge, _free_place, draw_sheet, names_on_sheet
from stages.inspect.views import Partner, Sample, SeenView
from stages.plotting.text import PAPER, length, typeface, wrap
from stages.replay.apply import Renderer
from stages.replay.decide import Box, DecidedMix, DecidedView, Decider
from stages.replay.policies import LEVELS, Op

LONG = "Donaudampfschifffahrtsgesellschaft" * 6
NAMES = ["cat", f"a name of many words, {'and more ' * 12}", LONG, "Größe 中文"]
MARGIN, TILE, GUTTER = 48, 340, 36


def sample_of(height: int, width: int, label: int = 0) -> Sample:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Sample(number=7, shard=0, row=7, name=f"{LONG}/{LONG}.jpg", label=label, image=image)


def view_of(sample: Sample, recipe: Recipe, number: int, decision: int | None, other: int = 2) -> SeenView:
    """A view as decided, with noise for pixels; every seventh sits out."""
    decider, side = Decider(recipe), recipe.image_size
    decided = decider.view(sample.shard, sample.row, number, *sample.image.shape[:2])
    noise = np.random.default_rng(number).integers(0, 256, (3, side, side, 3), np.uint8)
    if number % 7 == 6:
        return SeenView(number, decided, noise[0], None, None, None, None)
    return SeenView(
        number, decided, noise[0], Partner(3, other, noise[1]), decider.mix(0, 0, number), noise[2], decision
    )


def sheet(side=32, count=3, size=(40, 60), names=NAMES, label=0, **recipe):
    made = Recipe(image_size=side, **recipe)
    sample = sample_of(*size, label=label)
    views = [view_of(sample, made, number, number % len(names)) for number in range(count)]
    return np.asarray(draw_sheet(sample, views, made, names, [("labels", "none")]))


OPS = sorted({name for name, _ in LEVELS.values()})


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_words_and_no_words_are_shared(name):
    words = {other: op_words(Op(other, 0.5)) for other in OPS}
    assert list(words.values()).count(words[name]) == 1
    assert op_words(Op(name, 0.5)) != op_words(Op(name, -0.25)) or name in ("autocontrast", "equalize", "invert")


@pytest.mark.parametrize(
    ("name", "level", "words", "point", "moved"),
    [
        ("translate_x", 0.25, "shift 25% left", (30, 30), (30, 14)),
        ("translate_x", -0.25, "shift 25% right", (30, 30), (30, 46)),
        ("translate_y", 0.25, "shift 25% up", (30, 30), (14, 30)),
        ("translate_y", -0.25, "shift 25% down", (30, 30), (46, 30)),
        ("rotate", 90.0, "rotate 90° anticlockwise", (10, 32), (32, 10)),
        ("rotate", -90.0, "rotate 90° clockwise", (10, 32), (32, 53)),
        ("shear_x", 0.3, "shear bottom 30% left", (60, 40), (60, 22)),
        ("shear_x", -0.3, "shear bottom 30% right", (60, 20), (60, 38)),
        ("shear_y", 0.3, "shear right side 30% up", (40, 60), (22, 60)),
        ("shear_y", -0.3, "shear right side 30% down", (20, 60), (38, 60)),
    ],
)
def test_directions_are_those_in_which_the_picture_moves(name, level, words, point, moved):
    assert op_words(Op(name, level)) == words
    view, out = np.zeros((64, 64, 3), np.uint8), np.empty((64, 64, 3), np.uint8)
    y, x = point
    view[y - 1 : y + 2, x - 1 : x + 2] = 255
    Renderer(64).render(view, DecidedView(Box(0, 0, 64, 64), False, (Op(name, level),), None), out)
    whites = np.argwhere(out.min(axis=2) > 200)
    assert np.abs(whites.mean(axis=0) - moved).max() <= 1.5


def test_strengths_are_told_as_one_says_them():
    said = [
        ("posterize", 3),
        ("posterize", 1),
        ("solarize", 26),
        ("color", 0.43),
        ("brightness", 1.81),
        ("solarize_add", 99),
    ]
    assert [op_words(Op(name, level)) for name, level in said] == [
        "posterize to 3 bits", "posterize to 1 bit", "solarize from level 26", "colour -57%", "brightness +81%",
        "solarize-add 99 levels",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "other", "mark", "said"),
    [
        (0, 2, "own", "cat (its own class)"),
        (1, 1, "partner", "dog (its partner's)"),
        (2, 1, "neither", "cow (neither)"),
        (None, 1, None, "not labelled"),
    ],
)
def test_teacher_and_truth_stand_side_by_side_in_words(decision, other, mark, said):
    recipe = Recipe(image_size=32)
    sample = sample_of(40, 40)
    view = view_of(sample, recipe, 0, decision, other)
    lines = {fact.label: fact for fact in facts(sample, view, recipe, ["cat", "dog", "cow"])}
    assert list(lines) == ["crop", "ops", "erased", "mix", "truth", "teacher"]
    assert (lines["teacher"].text, lines["teacher"].mark) == (said, mark)
    own = view.mix.lam
    assert lines["truth"].text == f"cat ({own:.0%}), {['cat', 'dog', 'cow'][other]} ({1 - own:.0%})"
    assert f"lambda {own:.2f}" in lines["mix"].text


def test_agreement_shows_without_colour():
    masks = [np.asarray(_badge(mark)).astype(int) for mark in ("own", "partner", "neither")]
    for first, second in itertools.combinations(masks, 2):
        assert (np.abs(first - second) > 128).sum() > 10


def test_an_unmixed_view_and_one_that_sits_out_say_so():
    recipe = Recipe(image_size=32)
    sample = sample_of(40, 40)
    out = view_of(sample, recipe, 6, None)
    alone = SeenView(0, out.decided, out.alone, Partner(1, 1, out.alone), DecidedMix(1.0, None), out.alone, None)
    said = [{fact.label: fact.text for fact in facts(sample, one, recipe, NAMES)} for one in (out, alone)]
    assert [one["mix"] for one in said] == ["sits out: its shard is odd in number", "not mixed"]
    assert [one["truth"] for one in said] == ["cat", "cat"]


@pytest.mark.parametrize("label", [0, 1, 2, 3])
@pytest.mark.parametrize(("count", "policy"), [(1, "rand-m9-mstd0.5-inc1"), (3, "rand-n20-p1"), (8, "rand-n1-p0")])
def test_nothing_leaves_its_column_however_long_names_and_ops_are(count, policy, label):
    picture = sheet(count=count, label=label, rand_augment=policy)
    columns = min(4, max(2, count))
    assert picture.shape[1] == 2 * MARGIN + columns * TILE + (columns - 1) * GUTTER
    paper = np.array(ImageColor.getrgb(PAPER))
    written = (picture != paper).any(axis=2)
    for edge in (written[:, :MARGIN], written[:, -MARGIN:], written[:MARGIN], written[-MARGIN:]):
        assert not edge.any()
    tiles = written[-150:]
    for column in range(1, columns):
        right = MARGIN + column * (TILE + GUTTER)
        assert not tiles[:, right - GUTTER : right].any()


@pytest.mark.parametrize("side", [8, 28, 32, 100, 224, 384])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (3000, 20), (20, 3000), (500, 333)])
def test_views_and_images_of_any_size_are_drawn_at_one_size(side, size):
    assert sheet(side=side, size=size, count=2).shape[1] == 2 * MARGIN + 2 * TILE + GUTTER


def test_sixty_views_fill_fifteen_rows():
    one, sixty = (sheet(count=count, names=["cat"] * 4, rand_augment="rand-n1-p0") for count in (4, 60))
    assert sixty.shape[1] == one.shape[1]
    assert sixty.shape[0] > one.shape[0] + 14 * (224 + 100)


@pytest.mark.parametrize("side", [32, 224, 384])
def test_views_of_the_shown_size_are_shown_to_the_pixel_small_ones_in_squares_and_large_ones_reduced(side):
    recipe = Recipe(image_size=side)
    sample = sample_of(300, 300)
    view = view_of(sample, recipe, 0, None)
    picture = np.asarray(draw_sheet(sample, [view], recipe, NAMES, []))
    shown = {
        32: np.kron(view.seen, np.ones((7, 7, 1), np.uint8)),
        224: view.seen,
        384: np.asarray(Image.fromarray(view.seen).resize((224, 224), Image.Resampling.LANCZOS)),
    }
    assert holds(picture, shown[side])


def holds(picture: np.ndarray, view: np.ndarray) -> bool:
    tops = range(len(picture) - 224)
    return any(np.array_equal(picture[top : top + 224, MARGIN : MARGIN + 224], view) for top in tops)


def test_lines_hold_every_word_and_fit():
    for text, width in (("one two three four " * 9, 90), (LONG, 60), ("", 50), (f"to {LONG} end", 120), ("WW", 1)):
        lines = wrap(text, width, 14)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(length(line, 14) <= width or len(line) == 1 for line in lines)


def test_the_font_has_all_of_ascii():
    missing = bytes(typeface(20).getmask("\uffff"))
    assert all(bytes(typeface(20).getmask(char)) != missing for char in map(chr, range(33, 127)))
    assert all(bytes(typeface(20).getmask(char)) != missing for char in "°·")


def test_names_on_a_sheet_are_those_that_it_shows():
    recipe = Recipe(image_size=32)
    sample = sample_of(40, 40)
    views = [view_of(sample, recipe, 0, 3), view_of(sample, recipe, 6, None)]
    assert names_on_sheet(sample, views, ["cat", "dog", "cow", "猫"]) == [sample.name, "cat", "cow", "猫"]


def test_numbers_cover_each_other_only_where_there_is_no_room():
    random = np.random.default_rng(3)
    taken = []
    for _ in range(12):
        left, top = random.integers(0, 100, 2).tolist()
        taken.append(_free_place((left, top, left + 200, top + 200), 22, taken))
    for first, second in itertools.combinations(taken, 2):
        assert first[2] < second[0] or second[2] < first[0] or first[3] < second[1] or second[3] < first[1]
    assert _free_place((0, 0, 5, 5), 22, [(0, 0, 50, 50)])[:2] == (0, 0)


def test_the_crop_of_each_view_is_outlined_in_its_colour():
    recipe = Recipe(image_size=32)
    sample = sample_of(300, 300)
    view = view_of(sample, recipe, 1, None)
    picture = np.asarray(draw_sheet(sample, [view], recipe, ["cat"] * 4, []))
    orange = (picture == ImageColor.getrgb("#cf4a10")).all(axis=2)
    crop: Box = view.decided.crop
    photo_top = int(np.flatnonzero(orange.any(axis=1))[0]) - crop.top
    ys, xs = np.nonzero(orange[photo_top : photo_top + 300, MARGIN : MARGIN + 300])
    assert (ys.min(), ys.max()) == (crop.top, crop.top + crop.height - 1)
    assert (xs.min(), xs.max()) == (crop.left, crop.left + crop.width - 1)
