"""Evaluation: every image exactly once, each head and both fusions counted as by hand, on timm's own centre crop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from world import silent

from pipeline import run as stages
from schemas.errors import PipelineError
from stages.dataset import Split
from stages.evaluate import CentreCrops, accuracy
from stages.replay.mix import normalise
from stages.student import Heads
from stages.train import new_student
from stages.weights import find_weights


class Told(torch.nn.Module):
    """Says the logits it was told, batch by batch."""

    mean, std = (0.0,) * 3, (1.0,) * 3

    def __init__(self, heads: list[Heads]) -> None:
        super().__init__()
        self.heads = iter(heads)

    def forward(self, images: torch.Tensor) -> Heads:
        return next(self.heads)


def best(scores: np.ndarray, truth: np.ndarray, first: int) -> float:
    """Share of rows whose truth is among their first classes."""
    return float(np.mean([t in np.argsort(-row)[:first] for row, t in zip(scores, truth, strict=True)]))


def test_every_head_and_both_ways_to_fuse_them_are_counted_as_by_hand():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 50, 12)) * np.array([1, 4])[:, None, None]
    truth = random.integers(0, 12, 50)
    soft = [np.exp(logits) / np.exp(logits).sum(1, keepdims=True) for logits in (one, other)]
    scores = {"class": one, "distillation": other, "fused": one + other, "fused_softmax": soft[0] + soft[1]}
    expected = {name: {"top1": best(rows, truth, 1), "top5": best(rows, truth, 5)} for name, rows in scores.items()}
    cuts = [slice(0, 32), slice(32, 50)]
    heads = [Heads(torch.from_numpy(one[cut]), torch.from_numpy(other[cut])) for cut in cuts]
    batches = [(torch.zeros(len(truth[cut]), 4, 4, 3, dtype=torch.uint8), torch.from_numpy(truth[cut])) for cut in cuts]
    counted = []
    found = accuracy(Told(heads), batches, torch.device("cpu"), counted.append)
    assert found == {"samples": 50} | expected
    assert expected["fused"] != expected["fused_softmax"]
    assert counted == [32, 18]


def test_a_model_with_one_head_has_only_the_class_head():
    heads = [Heads(torch.eye(3), None)]
    batches = [(torch.zeros(3, 4, 4, 3, dtype=torch.uint8), torch.tensor([0, 1, 1]))]
    found = accuracy(Told(heads), batches, torch.device("cpu"), lambda n: None)
    assert found["class"] == {"top1": pytest.approx(2 / 3), "top5": 1.0}
    assert found["distillation"] is found["fused"] is found["fused_softmax"] is None


def test_no_image_is_no_accuracy():
    with pytest.raises(PipelineError, match="has no images"):
        accuracy(Told([]), [], torch.device("cpu"), lambda n: None)


@pytest.mark.parametrize("batch", [1, 7, 20, 64])
def test_every_image_is_cropped_exactly_once_whatever_the_batch(whole, batch):
    crops = CentreCrops(Split.open(whole.workspace, "val"), 32, 0.875, batch)
    views = [crops[number] for number in range(len(crops))]
    at_once, truth = CentreCrops(Split.open(whole.workspace, "val"), 32, 0.875, 20)[0]
    assert torch.equal(torch.cat([view for view, _ in views]), at_once)
    assert torch.cat([one for _, one in views]).tolist() == truth.tolist() == 5 * [0] + 5 * [1] + 5 * [2] + 5 * [3]


def test_a_crop_is_timms_own_of_the_original_file(whole):
    split = Split.open(whole.workspace, "val")
    transform = create_transform(24, is_training=False, interpolation="bicubic", crop_pct=0.7, use_prefetcher=True)
    for row in (0, 1, 2, 19):
        with Image.open(Path(whole.source.val, split.index(0).names[row])) as image:
            expected = np.asarray(transform(image.convert("RGB"))).transpose(1, 2, 0)
        assert np.array_equal(CentreCrops(split, 24, 0.7, 4).crop(0, row), expected)


def test_the_stored_result_is_what_the_trained_model_says_image_by_image(whole):
    stored = json.loads(Path(whole.workspace, "runs/student/evaluation.json").read_text())
    split = Split.open(whole.workspace, "val")
    model = new_student(whole, split).eval()
    model.model.load_state_dict(find_weights("run:student", whole.workspace, "x"))
    crops, right = CentreCrops(split, 32, 0.875, 1), 0
    with torch.inference_mode():
        for number in range(20):
            view, truth = crops[number]
            right += int(model(normalise(view, model.mean, model.std)).fused.argmax(1) == truth)
    assert stored["samples"] == 20
    assert stored["fused"]["top1"] == right / 20
    assert {"class", "distillation", "fused", "samples"} <= stored.keys()


def test_the_moving_average_can_be_measured_in_place_of_the_weights(copied):
    result = stages.evaluate(copied({"evaluate": {"weights": "ema"}}), silent)
    assert result["weights"] == "ema"
    assert result["samples"] == 20


def test_a_model_is_measured_at_another_size_with_its_positions_resampled(copied):
    assert stages.evaluate(copied({"student": {"img_size": 48}}), silent)["image_size"] == 48
