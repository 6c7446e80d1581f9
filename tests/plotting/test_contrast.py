"""Colours of pictures: legible on their ground, and told apart also by those who see no green (deuteranopia)."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from stages.inspect.agreement import _hatched
from stages.inspect.captions import VERDICTS
from stages.inspect.contact_sheet import COLOURS as SHEET_COLOURS
from stages.plotting.charts import COLOURS, Series, chart
from stages.plotting.contrast import contrast, ink_on, linear
from stages.plotting.text import INK, PAPER
from stages.report import page

DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB."""
KINDS = [colour for colour, _ in VERDICTS.values()]


def seen(colour: str) -> np.ndarray:
    """Linear RGB as a deuteranope sees it."""
    return np.clip(np.array(DEUTERANOPIA) @ linear(colour), 0, 1)


def seen_contrast(one: str, other: str) -> float:
    low, high = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ seen(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lightness_and_hue(colour: str) -> np.ndarray:
    """CIE Lab of a colour as a deuteranope sees it."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen(colour)
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_contrast_is_wcags():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert ink_on("#cf4a10", "#ffffff", INK) == "#ffffff" and ink_on("#fbd0a0", "#ffffff", INK) == INK


@pytest.mark.parametrize("colour", [*KINDS, *COLOURS])
def test_words_in_a_colour_are_legible_on_the_ground(colour):
    assert contrast(colour, PAPER) >= 4.5


def test_verdicts_differ_in_luminance_for_all_eyes():
    for one, other in combinations(KINDS, 2):
        assert contrast(one, other) >= 1.45 and seen_contrast(one, other) >= 1.45


def test_colours_of_series_differ_for_a_deuteranope():
    for one, other in combinations(COLOURS, 2):
        assert np.linalg.norm(lightness_and_hue(one) - lightness_and_hue(other)) >= 20, (one, other)


@pytest.mark.parametrize("colour", SHEET_COLOURS)
def test_white_numbers_are_legible_on_the_colours_of_crops(colour):
    assert contrast(colour, "#ffffff") >= 4.5


def test_crops_of_views_that_follow_each_other_differ_for_a_deuteranope():
    for step in (1, 2):
        for one, other in zip(SHEET_COLOURS, np.roll(SHEET_COLOURS, -step), strict=True):
            assert np.linalg.norm(lightness_and_hue(one) - lightness_and_hue(other)) >= 20, (one, other)


def page_themes() -> list[dict[str, str]]:
    """The report's colours by name, as its light and its dark theme set them."""
    style = (Path(page.__file__).parent / "page.html.j2").read_text(encoding="utf-8")
    return [dict(re.findall(r"--(\w+): (#\w{6})", theme)) for theme in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]


@pytest.mark.parametrize("theme", page_themes(), ids=["light", "dark"])
def test_colours_of_reports_are_legible_and_differ_for_a_deuteranope(theme):
    series = [theme[f"c{number}"] for number in range(6)]
    kinds = [theme[kind] for kind in ("own", "partner", "neither")]
    for colour in (*series, *kinds, theme["ink"], theme["muted"]):
        assert contrast(colour, theme["paper"]) >= 4.5, colour
    assert contrast(theme["muted"], theme["block"]) >= 4.5 and contrast(theme["ink"], theme["block"]) >= 4.5
    for one, other in combinations(series, 2):
        assert np.linalg.norm(lightness_and_hue(one) - lightness_and_hue(other)) >= 18, (one, other)
    for one, other in combinations(kinds, 2):
        assert contrast(one, other) >= 1.45 and seen_contrast(one, other) >= 1.45, (one, other)


def test_partner_and_neither_are_hatched_each_in_its_direction():
    from PIL import Image

    patterns = {}
    for kind, (colour, _) in VERDICTS.items():
        pixels = np.array(_hatched(Image.new("RGB", (12, 12), colour)))
        patterns[kind] = (pixels != pixels[0, 1]).any(-1)
    assert not patterns["own"].any() and patterns["partner"].any() and patterns["neither"].any()
    assert (patterns["partner"] != patterns["neither"]).any()


def test_a_bar_shows_the_spread_of_a_point():
    points = [(1.0, 50.0), (2.0, 60.0)]
    plain, barred = (
        np.array(chart("t", "a", [Series("s", points, spread=spread)], x="x", y="y", y_range=(0.0, 0.0)))
        for spread in ((), (20.0, 20.0))
    )
    changed = (plain != barred).any(-1)
    assert changed.any(0).sum() < 10 and changed.any(1).sum() > 100  # two upright strokes, long ones
