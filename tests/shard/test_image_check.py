"""The quick check has the verdict of a full decode, for whole images of every form and for damage of every kind."""

import io
import random
import warnings

import pytest
from PIL import Image

from stages.shard import image_check
from stages.shard.image_check import check_image
from tests.support.images import WHOLE, picture, saved


@pytest.mark.parametrize("form", WHOLE)
def test_a_whole_image_of_any_form_is_taken_as_it_is_stored(form):
    make, kind = WHOLE[form]
    assert check_image(make()) == (70, 90, kind)


def test_only_baseline_jpegs_in_one_scan_are_spared_the_full_decode():
    spared = [form for form, (make, kind) in WHOLE.items() if kind == ".jpeg" and image_check._plain_and_whole(make())]
    assert sorted(spared) == sorted(form for form in WHOLE if "PNG" not in form and form != "progressive")


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "is empty"), (b"text" * 99, "is not an image"), (saved(picture())[:-2], ""), (saved(picture())[:900], "")],
)
def test_what_is_no_whole_image_is_named_with_its_cause(data, says):
    if says:
        with pytest.raises(ValueError, match=says):
            check_image(data)
    else:
        assert verdict(data) == fully_decoded(data)


def test_a_truncated_image_is_refused():
    data = saved(picture((500, 400)), quality=95)
    with pytest.raises(ValueError, match="truncated"):
        check_image(data[: len(data) // 2])


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = bytearray(saved(picture()))
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = b"\xff\x00\xff\x00"
    with pytest.raises(ValueError, match="decompression bomb"):
        check_image(bytes(bomb))


def fully_decoded(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception:
        return False
    return True


def verdict(data: bytes) -> bool:
    try:
        check_image(data)
    except ValueError:
        return False
    return True


def damaged(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.randrange(1, 400))
    overwritten = bytearray(data)
    for _ in range(2):
        overwritten[chance.randrange(min(len(data), chance.choice((700, len(data)))))] = chance.randrange(256)
    return chance.choice(
        (data[:at], data[:at] + data[end:], data[:at] + bytes(end - at) + data[end:], bytes(overwritten))
    )


@pytest.mark.parametrize("form", ["baseline", "grey", "CMYK", "with restarts", "broken EXIF"])
def test_the_verdict_on_a_damaged_jpeg_is_that_of_a_full_decode(form):
    chance, data, bad = random.Random(1), WHOLE[form][0](), 0
    with warnings.catch_warnings(action="ignore"):
        for _ in range(400):
            spoilt = damaged(data, chance)
            bad += not fully_decoded(spoilt)
            assert verdict(spoilt) == fully_decoded(spoilt)
    assert 40 < bad < 360
