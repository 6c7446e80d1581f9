"""Only forms of photographs are opened, wide grey is scaled as its twin of 8 bits, and any error is an image's."""

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.commands import run as stages
from stages.data.center_crop import centre_crops
from stages.data.image_set import EncodedImage
from stages.replay.decode import decode
from stages.shard import image_check
from stages.shard.image_check import check_image
from tests.support.hostile import folder, picture
from tests.support.world import run_file, silent

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
RAMP = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (40, 1))


def saved(pixels: np.ndarray, form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def damaged_profile() -> bytes:
    """A PNG with a colour profile that ends behind its name: Pillow raises IndexError."""
    whole, body = picture("a", "PNG"), b"iCCPk\0"
    return whole[:-12] + struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body)) + whole[-12:]


def test_no_program_is_started_for_an_image(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(ValueError, match="is not an image"):
        check_image(POSTSCRIPT)
    with pytest.raises(ValueError, match="not a readable image"):
        decode(POSTSCRIPT)


@pytest.mark.parametrize("error", [IndexError("x"), RuntimeError("x"), NotImplementedError("x"), MemoryError()])
def test_whatever_a_decoder_raises_is_the_images_fault(tmp_path, monkeypatch, error):
    def load(self):
        raise error

    root = folder(tmp_path / "x")
    (root / "a/bad.png").write_bytes(picture("a", "PNG"))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    settings = {"source": {"train": str(root), "val": ""}, "shards": {"on_bad_image": "skip"}}
    result = stages.shard(run_file(tmp_path / "ws", tmp_path, settings), silent)["splits"]["train"]
    assert (result["samples"], result["skipped"]) == (6, 1)


def test_a_damaged_profile_is_named(tmp_path, refused):
    root = folder(tmp_path / "x")
    (root / "a/profile.png").write_bytes(damaged_profile())
    run = run_file(tmp_path / "ws", tmp_path, {"source": {"train": str(root), "val": ""}})
    assert "unreadable images: a/profile.png " in refused(stages.shard, run, silent)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_is_scaled_to_the_pixels_of_its_twin(form):
    wide = decode(saved(RAMP, form))
    assert check_image(saved(RAMP, form))[:2] == (40, 48)
    np.testing.assert_array_equal(wide[:, :, 0], RAMP >> 8)


def test_values_of_8_bits_in_16_are_taken_as_they_are():
    np.testing.assert_array_equal(decode(saved(RAMP >> 8, "PNG"))[:, :, 1], RAMP >> 8)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_white_are_refused(kind):
    data = saved(RAMP.astype(kind), "TIFF")
    with pytest.raises(ValueError, match="of which nothing says what white is"):
        check_image(data)
    with pytest.raises(ValueError, match="of which nothing says what white is"):
        decode(data)


def test_a_mode_without_a_way_to_rgb_is_refused_when_it_is_packed(monkeypatch):
    monkeypatch.setattr(image_check, "check_mode", lambda _: None)

    def convert(self, *_):
        raise ValueError("conversion from LAB to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(ValueError, match="conversion from LAB"):
        check_image(picture("a", "PNG"))


class One:
    """A gallery of one image."""

    rows, classes, content, title = (1,), ("a",), "", ""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, block, rows):
        return iter([EncodedImage("x", 0, self.data)])


def crop(data: bytes) -> np.ndarray:
    (found,) = centre_crops(One(data), 0, image_size=32, crop_pct=0.875, batch=1, threads=1)
    return found.views[0].numpy()


@pytest.mark.parametrize("size", [(1, 12_000), (12_000, 1), (4, 9_000)])
def test_a_centre_crop_of_a_very_long_image_is_that_of_its_middle(monkeypatch, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    short, long = sorted(size)
    cut = (long - 100 * short) // 2
    middle = pixels[cut : long - cut] if size[0] == long else pixels[:, cut : long - cut]
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *a, **k: sizes.append(to) or resize(self, to, *a, **k))
    found = crop(saved(pixels, "PNG"))
    assert max(sizes[0]) < 100 * 32
    np.testing.assert_allclose(found.astype(int), crop(saved(middle, "PNG")).astype(int), atol=2)


def test_usual_images_are_cropped_from_all_of_their_pixels(monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, to, *a, **k: sizes.append(self.size) or resize(self, to, *a, **k)
    )
    crop(picture("a", size=(320, 10)))
    assert sizes == [(320, 10)]
