"""Names of any script on pictures: drawn where a font has them, escaped and said where none has; never "?"."""

from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw

from stages.plotting import fonts
from stages.plotting.charts import heat_map
from stages.plotting.fonts import OWN, escaped_note, font_of, pieces
from stages.plotting.text import PAPER, length, wrap, write


def made_font(file: Path, characters: str) -> Path:
    """A font in which each of the characters is a black box, and all others are missing."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0)), pen.lineTo((100, 800)), pen.lineTo((900, 800)), pen.lineTo((900, 0)), pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "box"])
    builder.setupCharacterMap({ord(one): "box" for one in characters})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "box": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "box": (1000, 100)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupOS2()
    builder.setupNameTable({"familyName": file.stem, "styleName": "Regular"})
    builder.setupPost()
    builder.save(file)
    return file


@pytest.fixture
def machine_fonts(tmp_path, monkeypatch):
    """The folder that holds all fonts of this machine besides those that the libraries bring; forgets what it was."""
    monkeypatch.setattr(font_manager, "X11FontDirectories", [str(tmp_path)])
    for other in ("MSFontDirectories", "OSXFontDirectories"):
        monkeypatch.setattr(font_manager, other, [])
    monkeypatch.setattr(font_manager, "_get_fontconfig_fonts", list)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    fonts._files.cache_clear()
    font_of.cache_clear()


def drawn(text: str) -> np.ndarray:
    picture = Image.new("RGB", (400, 40), PAPER)
    write(ImageDraw.Draw(picture), (4, 4), text, 20)
    return np.asarray(picture)


def test_ascii_is_set_in_the_font_that_pillow_brings():
    text = "".join(map(chr, range(32, 127))) + "°·"
    assert pieces(text) == [(OWN, text)]


@pytest.mark.parametrize("name", ["Äpfel", "A\u0308pfel", "Größe", "яблоко", "μῆλον", "تفاحة"])
def test_names_are_drawn_in_full_without_any_font_of_the_machine(machine_fonts, name):
    ((file, piece),) = pieces(name)
    assert Path(file).name == "DejaVuSans.ttf" and len(piece) == len(name) - name.count("\u0308")
    assert not escaped_note([name])
    assert (drawn(name) != drawn("Apfel")).any()


def test_words_of_a_script_that_runs_from_right_to_left_keep_their_order(machine_fonts):
    assert [piece for _, piece in pieces("تفاحة حمراء (3)")] == ["تفاحة حمراء", " (3)"]


def test_what_no_font_has_is_escaped_and_said(machine_fonts):
    assert pieces("a 猫") == [(OWN, "a \\u732b")]
    assert (drawn("猫") == drawn("\\u732b")).all()
    note = escaped_note(["dog", "猫", "犬", "Äpfel"])
    assert "\n" not in note and "characters of 猫, 犬: they" in note and "\\u732b" in note and "install" in note
    assert pieces("a\x1b\u202eb") == [(OWN, "a\\x1b\\u202eb")]


def test_a_font_that_is_installed_is_found(machine_fonts):
    before = drawn("猫")
    made_font(machine_fonts / "Box-Regular.ttf", "猫")
    forget()
    assert [(Path(file).name, piece) for file, piece in pieces("猫 cat")] == [("Box-Regular.ttf", "猫"), ("", " cat")]
    assert not escaped_note(["猫"]) and escaped_note(["犬"])
    after = drawn("猫")
    assert (after != before).any() and length("猫", 20) == 20
    assert (after[10:18, 8:20] == after[10, 10]).all()  # the box


def test_fonts_that_cannot_be_read_or_that_draw_nothing_are_skipped(machine_fonts):
    (machine_fonts / "A-Regular.ttf").write_bytes(b"no font")
    empty = made_font(machine_fonts / "B-Regular.ttf", "猫")
    from fontTools.ttLib import TTFont

    with TTFont(empty) as font:
        font["glyf"]["box"] = TTGlyphPen(None).glyph()
        font.save(empty)
    assert font_of("猫") is None
    made_font(machine_fonts / "C-Regular.ttf", "猫")
    forget()
    assert Path(font_of("猫") or "").name == "C-Regular.ttf"


def test_a_font_of_this_machine_draws_chinese():
    forget()
    if font_of("猫") is None:
        pytest.skip("no font of this machine has 猫")
    assert not escaped_note(["猫"]) and (drawn("猫") != drawn("\\u732b")).any()


def test_long_names_wrap_within_their_width(machine_fonts):
    for line in wrap("Äpfel und Birnen 猫猫猫猫 Наименование", 60, 14):
        assert length(line, 14) <= 60


def test_a_heat_map_has_a_bar_of_its_colours():
    pixels = np.asarray(heat_map("t", "a", ["猫", "b"], np.array([[0.0, 0.5], [0.5, 0.0]])))
    shades = {tuple(pixel) for pixel in pixels[-48 - 54 + 14 + 7].tolist()}
    assert len(shades) > 100 and min(green for _, green, _ in shades) <= 0x4B
