"""Rows below the crops are not decoded, and no pixel above them is another for it."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.split import Split
from stages.replay import decode as decode_module
from stages.replay.decode import decode

REAL = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample_train.tar"
SIZES = ((375, 500), (97, 131), (16, 16), (33, 8))


def picture(height: int, width: int) -> np.ndarray:
    """A smooth picture with grain: neighbours differ, so a row that upsampling gets wrong is seen."""
    random = np.random.default_rng(height * width)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(smooth + random.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def jpeg(height: int, width: int, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(height, width)).convert(mode).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def assert_same_above(data: bytes, whole: np.ndarray, rows: int) -> np.ndarray:
    found = decode(data, rows)
    assert rows <= len(found) <= len(whole) and found.flags.c_contiguous
    np.testing.assert_array_equal(found, whole[: len(found)])
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"mode": "L"},
        {"subsampling": 2, "restart_marker_rows": 1},
        {"subsampling": 2, "restart_marker_blocks": 3},
        {"progressive": True},
        {"mode": "CMYK"},
    ],
    ids=["4:4:4", "4:2:2", "4:2:0", "grey", "restarts by row", "restarts by block", "progressive", "CMYK"],
)
def test_the_rows_that_are_decoded_are_those_of_the_whole_image(size, options, capfd):
    data = jpeg(*size, **options)
    whole = decode(data)
    np.testing.assert_array_equal(whole, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    for rows in range(1, size[0] + 1, 7):
        assert_same_above(data, whole, rows)
    assert capfd.readouterr() == ("", ""), "libjpeg warns of what it passes over"


def test_no_more_rows_are_decoded_than_the_crops_need_and_two_units_more(monkeypatch):
    data, decoded = jpeg(375, 500, subsampling=2), []
    turbo = decode_module.simplejpeg.decode_jpeg

    def watched(*arguments, **options):
        decoded.append(turbo(*arguments, **options))
        return decoded[-1]

    monkeypatch.setattr(decode_module.simplejpeg, "decode_jpeg", watched)
    assert len(decode(data, 100)) == 112
    assert len(decode(data)) == len(decode(data, 360)) == 375
    assert [len(one) for one in decoded] == [128, 375, 375]


def test_an_image_whose_rows_are_not_coded_in_order_is_decoded_whole():
    assert len(decode(jpeg(375, 500, progressive=True), 100)) == 375


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not here")
def test_rows_of_real_photographs_are_those_of_pillow():
    random, short = np.random.default_rng(0), 0
    with tarfile.open(REAL) as outer:
        for member in outer.getmembers()[::10]:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:  # type: ignore[arg-type]
                data = inner.extractfile(inner.getmembers()[0]).read()  # type: ignore[union-attr]
            whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            short += len(assert_same_above(data, whole, int(random.integers(1, len(whole) + 1)))) < len(whole)
    assert short > 20


def test_an_image_that_is_not_as_its_index_says_is_refused(whole, refused):
    from stages.data.views import ViewRenderer

    split = Split.open(whole.workspace, "train")
    index = split.index(0)
    wider = replace(index, widths=index.widths + 1)
    split.index = lambda _: wider
    out = np.empty((1, 32, 32, 3), np.uint8)
    assert "its index says" in refused(ViewRenderer(split, whole.views).views, [(0, 0, 0)], out)
