"""timm's own way, its create_transform and its model, decides as evaluation does, image by image."""

import io
import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from pipeline.commands import run as stages
from pipeline.commands.evaluate import predict_images
from schemas.config import RunFile
from stages.data.image_set import open_image_set
from stages.evaluate.evaluated_model import ModelRef
from tests.support.world import CLASSES, run_file, silent, write_images

DATA = Path(__file__).parents[3] / "shared/data"
PHOTOS, LITE0 = DATA / "imagenet_sample_train.tar", DATA / "tf_efficientnet_lite0.safetensors"


def timms(model: torch.nn.Module, pictures: list[Image.Image]) -> torch.Tensor:
    """Logits as timm's users make them: its config's transform, one image at a time in its own float arithmetic."""
    transform = create_transform(**resolve_data_config({}, model=model))
    images = torch.stack([transform(picture.convert("RGB")) for picture in pictures])
    with torch.inference_mode():
        return torch.cat([model.eval()(part) for part in images.split(50)])


def ours(config: RunFile) -> tuple[dict[str, list[int]], dict]:
    """Decisions by image name, and the stored figures."""
    image_set = open_image_set(config)
    result = stages.evaluate(config, silent)
    asked = predict_images(config, ModelRef(member=config.evaluate.members[0]), image_set, silent)
    return dict(zip(asked.predictions.names, asked.predictions.top["class"].tolist(), strict=True)), result


def pictures_of(config: RunFile) -> tuple[list[str], list[int], list[Image.Image]]:
    image_set = open_image_set(config)
    found = [one for block, rows in enumerate(image_set.rows) for one in image_set.read(block, range(rows))]
    return (
        [one.name for one in found],
        [one.label for one in found],
        [Image.open(io.BytesIO(one.data)) for one in found],
    )


@pytest.mark.skipif(not (PHOTOS.exists() and LITE0.exists()), reason="needs ../shared/data: photographs and weights")
def test_the_real_efficientnet_lite0_decides_on_500_photographs_as_through_timm(tmp_path):
    settings = {
        "source": {"train": str(PHOTOS), "val": "", "classes": "imagenet-1k"},
        "evaluate": {
            "source": str(PHOTOS), "model": "tf_efficientnet_lite0", "checkpoint": str(LITE0), "batch_size": 64,
        },
        "train": {"workers": 2},
    }  # fmt: skip
    run = run_file(tmp_path / "workspace", tmp_path, settings)
    decided, result = ours(run)
    names, labels, pictures = pictures_of(run)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(load_file(LITE0))
    top = timms(model, pictures).topk(5).indices.tolist()
    assert [decided[name][0] for name in names] == [row[0] for row in top]
    right = sum(row[0] == label for row, label in zip(top, labels, strict=True)) / 500
    assert (result["samples"], result["class"]["top1"]) == (500, right)
    assert 0.85 < right < 0.92


def test_a_model_decides_on_generated_images_as_through_timm(tmp_path):
    write_images(tmp_path / "images", dict.fromkeys(CLASSES, 6))
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=4)
    torch.nn.init.normal_(model.get_classifier().weight)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    about = resolve_data_config({}, model=model)
    checkpoint = str(tmp_path / "weights.safetensors")
    chosen = {"source": str(tmp_path / "images"), "model": "resnet10t", "checkpoint": checkpoint}
    more = {"image_size": about["input_size"][-1], "crop_pct": about["crop_pct"]}
    run = run_file(tmp_path / "workspace", tmp_path, {"evaluate": chosen | more})
    decided, result = ours(run)
    names, _, pictures = pictures_of(run)
    assert about["interpolation"] == "bicubic"
    assert [decided[name] for name in names] == timms(model, pictures).topk(4).indices.tolist()
    assert len({row[0] for row in decided.values()}) > 1
    (file,) = Path(run.workspace, "evaluations").glob("resnet10t-weights-*/*.json")
    stored = json.loads(file.read_text())
    assert stored["class"] == result["class"]
