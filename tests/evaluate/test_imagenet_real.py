"""ImageNet-Real: timm's labels by original file name, 46,837 of 50,000 scored, and nothing else is called so."""

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo
from timm.data.real_labels import RealLabelsImagenet

from schemas.errors import MismatchError
from stages.evaluate.imagenet_real import real_labels
from stages.evaluate.predictions import Predictions, score

NAMES = [f"some/folder/ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
SYNSETS = ImageNetInfo("imagenet-1k").label_names()


def test_timms_own_evaluator_says_the_same_of_all_50000_images():
    logits = torch.randn(50_000, 1000, generator=torch.Generator().manual_seed(0))
    truth = real_labels(NAMES, SYNSETS)
    for row, classes in enumerate(truth):  # as a good model would: mostly right
        if classes and row % 4:
            logits[row, min(classes)] += 5.0
    timms = RealLabelsImagenet(NAMES)
    timms.add_result(logits)
    top = logits.topk(5).indices.numpy()
    found = score(Predictions(NAMES, np.zeros(50_000, np.int64), {"class": top}), truth)
    assert found["samples"] == 46_837
    assert 0.5 < found["class"]["top1"] < found["class"]["top5"] < 1
    assert 100 * found["class"]["top1"] == pytest.approx(timms.get_accuracy(1), abs=1e-9)
    assert 100 * found["class"]["top5"] == pytest.approx(timms.get_accuracy(5), abs=1e-9)


def test_labels_follow_the_name_not_the_place():
    some = [NAMES[2], NAMES[0], "ILSVRC2012_val_00000002.jpg"]
    every = real_labels(NAMES, SYNSETS)
    assert real_labels(some, SYNSETS) == [every[2], every[0], every[1]]


def test_other_images_and_other_orders_of_classes_are_refused():
    with pytest.raises(MismatchError, match=r"n01440764_1\.JPEG is no official validation image \(1 such\)"):
        real_labels([NAMES[0], "n01440764_1.JPEG"], SYNSETS)
    with pytest.raises(MismatchError, match="not ImageNet's 1,000 in their order"):
        real_labels(NAMES[:1], SYNSETS[::-1])
