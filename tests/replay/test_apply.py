import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images
from timm.data import auto_augment

from schemas.recipe import IMAGENET_MEAN, IMAGENET_STD, Recipe
from stages.replay.apply import Renderer
from stages.replay.decide import Box, DecidedView, Decider, Erase, Op
from stages.replay.decode import decode
from stages.replay.policies import LEVELS
from stages.replay.signature import differs, signature
from tests.support.world import ROOT

SIZE = 224
BICUBIC = Image.Resampling.BICUBIC
PHOTOGRAPHS = [np.array(image) for image in load_sample_images().images]
VIEWS = [np.array(Image.fromarray(one).resize((SIZE, SIZE), BICUBIC, box=(50, 20, 450, 400))) for one in PHOTOGRAPHS]
REAL = ROOT.parent / "shared" / "data" / "imagenet_sample_train.tar"
TIMM_NAMES = {op: name for name, (op, _) in reversed(LEVELS.items())}


def plain(*ops: Op, crop: Box | None = None, flip: bool = False, erase: Erase | None = None) -> DecidedView:
    return DecidedView(crop or Box(0, 0, SIZE, SIZE), flip, ops, erase)


def rendered(image: np.ndarray, decided: DecidedView) -> np.ndarray:
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    Renderer(SIZE).render(image, decided, out)
    return out


def by_timm(view: np.ndarray, op: str, level: float | None, resample: Image.Resampling = BICUBIC) -> np.ndarray:
    arguments = () if level is None else (level,)
    image = auto_augment.NAME_TO_OP[TIMM_NAMES[op]](
        Image.fromarray(view), *arguments, fillcolor=(124, 116, 104), resample=resample
    )
    return np.asarray(image)


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first.astype(int) - second.astype(int))


def real_photographs(count: int) -> list[np.ndarray]:
    """Views of real ImageNet photographs, evenly spread."""
    found = []
    with tarfile.open(REAL) as outer:
        members = outer.getmembers()
        for member in members[:: len(members) // count][:count]:
            with tarfile.open(fileobj=io.BytesIO(outer.extractfile(member).read())) as inner:  # type: ignore[union-attr]
                found.append(decode(inner.extractfile(inner.getmembers()[0]).read()))  # type: ignore[union-attr]
    return found


# Operations

EXACT = [("equalize", None), ("invert", None)]
EXACT += [("posterize", bits) for bits in (1, 2, 4, 7, 8)]
EXACT += [("solarize", threshold) for threshold in (0, 1, 26, 128, 255, 256)]
EXACT += [("solarize_add", added) for added in (0, 50, 110, 128)]
NEAR = [("autocontrast", None)]
NEAR += [
    (op, factor) for op in ("brightness", "contrast", "color", "sharpness") for factor in (0.1, 0.55, 1.0, 1.37, 1.9)
]
ODD_VIEWS = [np.full_like(VIEWS[0], 77), VIEWS[0] // 4 + 90, np.where(VIEWS[1] < 128, 0, 255).astype(np.uint8)]


@pytest.mark.parametrize(("op", "level"), EXACT, ids=str)
def test_table_operations_are_those_of_pillow_to_the_level(op: str, level: float | None) -> None:
    for view in VIEWS + ODD_VIEWS:
        np.testing.assert_array_equal(rendered(view, plain(Op(op, level))), by_timm(view, op, level))


@pytest.mark.parametrize(("op", "level"), NEAR, ids=str)
def test_blends_are_those_of_pillow_to_one_level(op: str, level: float | None) -> None:
    for view in VIEWS + ODD_VIEWS:
        assert differences(rendered(view, plain(Op(op, level))), by_timm(view, op, level)).max() <= 1


def test_posterize_to_zero_bits_is_black_where_pillow_refuses() -> None:
    with pytest.raises(ValueError, match="bits"):
        by_timm(VIEWS[0], "posterize", 0)
    assert not rendered(VIEWS[0], plain(Op("posterize", 0))).any()


GEOMETRY = [("rotate", degrees) for degrees in (-30.0, -27.3, 3.1, 26.0, 30.0)]
GEOMETRY += [(f"shear_{axis}", slope) for axis in "xy" for slope in (-0.3, -0.271, 0.013, 0.26, 0.3, 1.7)]
GEOMETRY += [
    (f"translate_{axis}", share) for axis in "xy" for share in (-1.2, -0.43, -0.0021, 0.003, 0.405, 0.25, 0.999, 1.2)
]
MEAN_DIFFERENCE = {"rotate": 2.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.05, "translate_y": 0.05}


@pytest.mark.parametrize(("op", "level"), GEOMETRY, ids=str)
def test_geometry_is_that_of_pillow_within_its_mean_difference(op: str, level: float) -> None:
    for view in VIEWS:
        off = differences(rendered(view, plain(Op(op, level))), by_timm(view, op, level))
        assert off.mean() < MEAN_DIFFERENCE[op]
        assert (off > 32).mean() < (0.003 if op == "rotate" else 1e-9)  # the same pixels are filled


@pytest.mark.parametrize("degrees", [-27.0, 12.0, 27.0])
def test_a_rotation_is_nearer_to_pillows_bicubic_than_pillows_bilinear_is(degrees: float) -> None:
    for view in VIEWS:
        bicubic = by_timm(view, "rotate", degrees)
        bilinear = by_timm(view, "rotate", degrees, Image.Resampling.BILINEAR)
        assert (
            differences(rendered(view, plain(Op("rotate", degrees))), bicubic).mean()
            < differences(bilinear, bicubic).mean()
        )


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not here")
def test_real_photographs_keep_the_same_bounds() -> None:
    views = [np.array(Image.fromarray(one).resize((SIZE, SIZE), BICUBIC)) for one in real_photographs(20)]
    for op, level in [*NEAR, ("rotate", 27.0), ("shear_x", -0.27), ("shear_y", 0.27), ("translate_x", 0.4)]:
        off = [differences(rendered(view, plain(Op(op, level))), by_timm(view, op, level)) for view in views]
        assert np.mean(off) < MEAN_DIFFERENCE[op] if op in MEAN_DIFFERENCE else np.max(off) <= 1


# Crops

CROPS = [Box(50, 20, 300, 400), Box(0, 0, 427, 640), Box(100, 100, 90, 120), Box(10, 10, SIZE, SIZE), Box(5, 7, 1, 1)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", CROPS, ids=str)
def test_a_crop_is_pillows_bicubic_within_two_levels(crop: Box, flip: bool) -> None:
    for photograph in PHOTOGRAPHS:
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        expected = np.asarray(Image.fromarray(photograph).crop(box).resize((SIZE, SIZE), BICUBIC))
        off = differences(rendered(photograph, plain(crop=crop, flip=flip)), expected[:, ::-1] if flip else expected)
        assert (off <= 2).mean() >= 0.99


# Erasing


def test_noise_is_the_clipped_normal_of_a_normalised_view() -> None:
    box = Box(0, 0, SIZE, SIZE)
    noise = np.stack([rendered(VIEWS[0], plain(erase=Erase(box, (0, 1, 2, view)))) for view in range(4)]).reshape(-1, 3)
    for levels, mean, std in zip(noise.T, IMAGENET_MEAN, IMAGENET_STD, strict=True):
        edges = (np.arange(257) - 0.5) / 255
        expected = np.diff(stats.norm(mean, std).cdf(np.concatenate([[-np.inf], edges[1:-1], [np.inf]])))
        counts = np.bincount(levels, minlength=256)
        assert np.abs(counts.cumsum() / counts.sum() - expected.cumsum()).max() < 0.006
        normal = np.clip(np.random.default_rng(0).normal(mean, std, 400_000) * 255, 0, 255)
        assert abs(levels.mean() - normal.mean()) < 0.5 and abs(levels.std() - normal.std()) < 0.5
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.01


def test_noise_belongs_to_its_address_and_stays_in_its_box() -> None:
    box = Box(30, 50, 41, 67)
    first, again, other = (rendered(VIEWS[0], plain(erase=Erase(box, (0, 1, row, 3)))) for row in (2, 2, 7))
    inside = np.zeros((SIZE, SIZE), bool)
    inside[30:71, 50:117] = True
    np.testing.assert_array_equal(first, again)
    assert (first[inside] != other[inside]).mean() > 0.9
    np.testing.assert_array_equal(first[~inside], VIEWS[0][~inside])


def test_a_constant_box_is_the_mean_colour() -> None:
    view = rendered(VIEWS[0], plain(erase=Erase(Box(30, 50, 41, 67), None)))
    assert (view[30:71, 50:117] == (124, 116, 104)).all()
    np.testing.assert_array_equal(view[:30], VIEWS[0][:30])
    np.testing.assert_array_equal(view[71:], VIEWS[0][71:])
    np.testing.assert_array_equal(view[:, 117:], VIEWS[0][:, 117:])


# Whole views


MANY_OPS = Recipe(rand_augment="rand-m9-mstd0.5-inc1-n3-p0.9", erasing_prob=0.5)


def some_views(count: int = 60) -> list[tuple[np.ndarray, DecidedView]]:
    decider = Decider(MANY_OPS)
    images = [PHOTOGRAPHS[row % 2] for row in range(count)]
    return [(image, decider.view(0, row, 0, *image.shape[:2])) for row, image in enumerate(images)]


def test_a_view_does_not_depend_on_what_was_rendered_before() -> None:
    renderer, out = Renderer(SIZE), np.empty((SIZE, SIZE, 3), np.uint8)
    for image, decided in some_views():
        renderer.render(image, decided, out)
        np.testing.assert_array_equal(out, rendered(image, decided))


def test_views_of_an_image_together_are_the_views_one_by_one() -> None:
    decided = [one for _, one in some_views()][::2]
    outs = np.empty((len(decided), SIZE, SIZE, 3), np.uint8)
    Renderer(SIZE).render_all(PHOTOGRAPHS[0], decided, outs)
    for one, out in zip(decided, outs, strict=True):
        np.testing.assert_array_equal(out, rendered(PHOTOGRAPHS[0], one))


def test_operations_are_applied_in_the_order_decided() -> None:
    ops = (Op("posterize", 2), Op("color", 1.7), Op("translate_x", 0.2))
    view = VIEWS[0]
    for op in ops:
        view = rendered(view, plain(op))
    np.testing.assert_array_equal(view, rendered(VIEWS[0], plain(*ops)))
    assert (view != rendered(VIEWS[0], plain(*reversed(ops)))).any()


@pytest.mark.parametrize("size", [8, 33, 384])
def test_every_operation_works_at_any_size(size: int) -> None:
    renderer, out = Renderer(size), np.empty((size, size, 3), np.uint8)
    for op, level in [*EXACT, *NEAR, *GEOMETRY]:
        renderer.render(PHOTOGRAPHS[0], plain(Op(op, level), crop=Box(20, 100, size, size)), out)
        source = PHOTOGRAPHS[0][20 : 20 + size, 100 : 100 + size]
        if op not in ("rotate", "shear_x", "shear_y"):  # whose bounds are means over a photograph
            assert differences(out, by_timm(source, op, level)).max() <= 2


@pytest.mark.parametrize(
    "out",
    [
        np.empty((SIZE, SIZE + 1, 3), np.uint8),
        np.empty((SIZE, SIZE, 3), np.float32),
        np.empty((SIZE, SIZE, 6), np.uint8)[..., ::2],
    ],
    ids=["shape", "type", "layout"],
)
def test_a_buffer_of_another_form_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="out: must be C-contiguous uint8"):
        Renderer(SIZE).render(PHOTOGRAPHS[0], plain(), out)


# One set of pixels everywhere


def test_pixels_do_not_depend_on_thread_counts() -> None:
    threads = torch.get_num_threads(), cv2.getNumThreads()
    found = {}
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            cv2.setNumThreads(count)
            found[count] = [rendered(image, decided) for image, decided in some_views()]
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    np.testing.assert_array_equal(found[1], found[4])


NARROW = {
    "ATEN_CPU_CAPABILITY": "default",
    "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3 AVX512_SKX AVX2",
    "OPENCV_IPP": "disabled",
}


ELSEWHERE = """
import sys
import numpy as np
from schemas.recipe import Recipe
from stages.replay.apply import Renderer
from stages.replay.decide import Decider
photographs = [np.load(path) for path in sys.argv[2:]]
decider = Decider(Recipe.model_validate_json(sys.stdin.read()))
views = np.empty((60, 224, 224, 3), np.uint8)
for row, out in enumerate(views):
    image = photographs[row % 2]
    Renderer(224).render(image, decider.view(0, row, 0, *image.shape[:2]), out)
np.save(sys.argv[1], views)
"""


def test_narrow_vector_units_give_the_same_pixels_within_the_signatures_tolerance(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.npy" for name in ("views", "first", "second")]
    for path, photograph in zip(paths[1:], PHOTOGRAPHS, strict=True):
        np.save(path, photograph)
    environment = os.environ | NARROW | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", ELSEWHERE, *map(str, paths)]
    subprocess.run(command, env=environment, check=True, input=MANY_OPS.model_dump_json(), text=True)
    narrow, wide = np.load(paths[0]), np.array([rendered(*one) for one in some_views()])
    assert (differences(narrow, wide) > 0).mean() < 1e-4
    assert not any(differs(signature(one), signature(other)) for one, other in zip(narrow, wide, strict=True))


# Decoding


def encoded(image: np.ndarray, form: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


JPEG = encoded(PHOTOGRAPHS[0], "JPEG")


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        encoded(PHOTOGRAPHS[1][:, :333], "JPEG", subsampling=0, quality=98),
        encoded(PHOTOGRAPHS[1], "JPEG", progressive=True),
        encoded(PHOTOGRAPHS[0], "JPEG", "CMYK"),
        encoded(PHOTOGRAPHS[0], "JPEG", "L"),
        encoded(PHOTOGRAPHS[0], "PNG"),
        encoded(PHOTOGRAPHS[0], "PNG", "P"),
        encoded(PHOTOGRAPHS[0], "PNG", "RGBA"),
        encoded(PHOTOGRAPHS[0], "PNG", "I;16") if "I;16" in Image.MODES else encoded(PHOTOGRAPHS[0], "PNG", "LA"),
        JPEG + b"after the end",
    ],
    ids=["4:2:0", "4:4:4", "progressive", "CMYK", "grey", "PNG", "palette", "alpha", "deep", "garbage after"],
)
def test_every_kind_of_file_decodes_to_pillows_pixels(data: bytes) -> None:
    image = decode(data)
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(PHOTOGRAPHS[0], "JPEG", exif=exif))
    np.testing.assert_array_equal(turned, decode(JPEG))


START_OF_FRAME = JPEG.index(b"\xff\xc0")
HUGE = JPEG[: START_OF_FRAME + 5] + b"\xff\xd0\xff\xd0" + JPEG[START_OF_FRAME + 9 :]


@pytest.mark.parametrize(
    "data",
    [HUGE, b"", b"no image", JPEG[: len(JPEG) // 2], JPEG[:-5000], JPEG[:300], encoded(PHOTOGRAPHS[0], "PNG")[:5000]],
    ids=["huge", "empty", "text", "half", "end", "head", "PNG"],
)
def test_an_unreadable_file_is_refused_with_its_cause(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a readable image \(.+\)"):
        decode(data)
