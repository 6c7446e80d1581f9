"""Where a moved view ends: pixels of the rim, and what a real network makes of them, against Pillow through timm."""

import io
import tarfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo, auto_augment

from stages.models.weight_file import read_weights
from stages.replay.decode import decode
from stages.replay.geometry import FILL, Geometry
from tests.support.world import ROOT

SIZE = 224
REAL = ROOT.parent / "shared" / "data"
BICUBIC = Image.Resampling.BICUBIC
TIMM = {
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
LEVELS = {"rotate": 27.0, "shear_x": 0.27, "shear_y": 0.27, "translate_x": 0.405, "translate_y": 0.405}
"""Of magnitude 9."""
MOVES = [(op, sign * share * level) for op, level in LEVELS.items() for sign in (-1, 1) for share in (0.31, 1.0)]


def moved(view: np.ndarray, op: str, level: float) -> np.ndarray:
    out = np.empty_like(view)
    getattr(Geometry(len(view)), op)(view, out, level)
    return out


def by_timm(view: np.ndarray, op: str, level: float, fill: tuple[int, int, int] = FILL) -> np.ndarray:
    image = auto_augment.NAME_TO_OP[TIMM[op]](Image.fromarray(view), level, fillcolor=fill, resample=BICUBIC)
    return np.asarray(image)


def filled_by_timm(op: str, level: float, size: int = SIZE) -> np.ndarray:
    return by_timm(np.zeros((size, size, 3), np.uint8), op, level, (255, 255, 255))[..., 0] == 255


def rim(filled: np.ndarray) -> np.ndarray:
    """Pixels that are not filled and have a filled neighbour."""
    near = np.pad(filled, 1)
    return ~filled & (near[2:, 1:-1] | near[:-2, 1:-1] | near[1:-1, 2:] | near[1:-1, :-2])


@pytest.mark.parametrize("size", [33, SIZE])
@pytest.mark.parametrize(("op", "level"), [*MOVES, ("rotate", 60.0), ("rotate", 133.0), ("rotate", 0.4)], ids=str)
def test_the_pixels_that_are_filled_are_pillows_and_no_other_has_any_of_the_fill(op, level, size):
    for shade in (0, 255):
        view = np.full((size, size, 3), shade, np.uint8)
        filled = filled_by_timm(op, level, size)
        out = moved(view, op, level)
        assert (out[filled] == FILL).all()
        assert (out[~filled] == shade).all()


@pytest.mark.parametrize(("op", "level"), MOVES, ids=str)
def test_the_rim_is_as_near_to_pillows_as_the_rest_of_the_view(op, level):
    for photograph in load_sample_images().images:
        view = np.array(Image.fromarray(photograph).resize((SIZE, SIZE), BICUBIC))
        off = np.abs(moved(view, op, level).astype(int) - by_timm(view, op, level))
        assert off[rim(filled_by_timm(op, level))].mean() <= 1.5 * off.mean() + 0.5


def centre_crop(data: bytes) -> np.ndarray:
    image = Image.fromarray(decode(data))
    scale = min(image.size) / 256
    image = image.resize((round(image.width / scale), round(image.height / scale)), BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.array(image.crop((left, top, left + SIZE, top + SIZE)))


def photographs(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Centre crops of ImageNet photographs, and their classes."""
    synsets, views, classes = ImageNetInfo().label_names(), [], []
    with tarfile.open(REAL / "imagenet_sample_train.tar") as outer:
        members = outer.getmembers()
        for member in members[:: len(members) // count][:count]:
            with tarfile.open(fileobj=io.BytesIO(outer.extractfile(member).read())) as inner:
                views.append(centre_crop(inner.extractfile(inner.getmembers()[0]).read()))
            classes.append(synsets.index(member.name.partition(".")[0]))
    return views, np.array(classes)


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not here")
def test_a_real_network_decides_on_moved_photographs_as_it_does_on_pillows():
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(read_weights(REAL / "tf_efficientnet_lite0.safetensors"))
    views, classes = photographs(100)

    @torch.inference_mode()
    def decisions(moved_views: list[np.ndarray]) -> np.ndarray:
        batches = torch.from_numpy(np.stack(moved_views)).permute(0, 3, 1, 2).float().div(127.5).sub(1).split(25)
        return torch.cat([network(batch).argmax(1) for batch in batches]).numpy()

    for op, most in {"rotate": 0.06, "shear_x": 0.03, "translate_y": 0.02}.items():
        signs = [(-1) ** nth for nth in range(len(views))]
        ours = decisions([moved(view, op, sign * LEVELS[op]) for view, sign in zip(views, signs, strict=True)])
        theirs = decisions([by_timm(view, op, sign * LEVELS[op]) for view, sign in zip(views, signs, strict=True)])
        assert (ours != theirs).mean() <= most
        assert abs((ours == classes).mean() - (theirs == classes).mean()) <= 0.03
