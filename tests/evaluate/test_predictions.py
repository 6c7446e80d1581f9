"""Evaluation: every image exactly once, each head and both fusions counted as by hand, on timm's own centre crop."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from pipeline.commands import run as stages
from pipeline.commands.evaluate import predict_images
from schemas.config import ClusterConfig
from schemas.errors import UserError
from stages.data.center_crop import Crops, centre_crops
from stages.data.image_set import ShardedImageSet, open_image_set
from stages.data.split import Split
from stages.evaluate.evaluated_model import ModelRef
from stages.evaluate.predictions import Predictions, predict, score
from stages.models.classifier import Heads, build
from stages.models.student import new_student
from stages.models.weights import find_weights
from stages.replay.mix import normalise
from tests.support.stored import edit_state
from tests.support.world import CLASSES, TINY_VIT, silent, stored, write_images


def best(scores: np.ndarray, truth: np.ndarray, first: int) -> float:
    """Share of rows whose truth is among their first classes."""
    return float(np.mean([t in np.argsort(-row)[:first] for row, t in zip(scores, truth, strict=True)]))


def told(heads: list[Heads], truth: np.ndarray) -> Predictions:
    """What a model says that says these logits, batch by batch."""
    sizes = [len(one.classes) for one in heads]
    parts = torch.from_numpy(truth).split(sizes)
    crops = [
        Crops(torch.zeros(len(part), 4, 4, 3, dtype=torch.uint8), part, [f"{number}" for number in part.tolist()])
        for part in parts
    ]
    said = iter(heads)
    return Predictions.of(predict(lambda views: next(said), crops))


def test_every_head_and_both_ways_to_fuse_them_are_counted_as_by_hand():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 50, 12)) * np.array([1, 4])[:, None, None]
    truth = random.integers(0, 12, 50)
    soft = [np.exp(logits) / np.exp(logits).sum(1, keepdims=True) for logits in (one, other)]
    scores = {"class": one, "distillation": other, "fused": one + other, "fused_softmax": soft[0] + soft[1]}
    expected = {name: {"top1": best(rows, truth, 1), "top5": best(rows, truth, 5)} for name, rows in scores.items()}
    cuts = [slice(0, 32), slice(32, 50)]
    found = told([Heads(torch.from_numpy(one[cut]), torch.from_numpy(other[cut])) for cut in cuts], truth)
    assert score(found, [{int(own)} for own in truth]) == {"samples": 50} | expected
    assert expected["fused"] != expected["fused_softmax"]


def test_a_model_with_one_head_has_only_the_class_head():
    found = score(told([Heads(torch.eye(3), None)], np.array([0, 1, 1])), [{0}, {1}, {1}])
    assert found["class"] == {"top1": pytest.approx(2 / 3), "top5": 1.0}
    assert found["distillation"] is found["fused"] is found["fused_softmax"] is None


def test_any_of_several_true_classes_is_right_and_an_image_without_one_is_not_scored():
    found = told([Heads(torch.eye(4), None)], np.array([0, 0, 0, 0]))
    assert score(found, [{0}, {3, 1}, set(), {0}]) == {
        "samples": 3, "class": {"top1": 2 / 3, "top5": 1.0}, "distillation": None, "fused": None, "fused_softmax": None,
    }  # fmt: skip
    with pytest.raises(UserError, match="no images with labels"):
        score(found, [set(), set(), set(), set()])


@pytest.mark.parametrize("batch", [1, 7, 20, 64])
@pytest.mark.parametrize("threads", [0, 3])
def test_every_image_is_cropped_exactly_once_whatever_the_batch(whole, batch, threads):
    image_set = ShardedImageSet(Split.open(whole.workspace, "val"), "val")

    def crops(batch: int) -> list[Crops]:
        return list(centre_crops(image_set, 0, image_size=32, crop_pct=0.875, batch=batch, threads=threads))

    made, at_once = crops(batch), crops(20)[0]
    assert torch.equal(torch.cat([one.views for one in made]), at_once.views)
    assert [name for one in made for name in one.names] == at_once.names == list(image_set.split.index(0).names)
    classes = torch.cat([one.classes for one in made]).tolist()
    assert classes == at_once.classes.tolist() == 5 * [0] + 5 * [1] + 5 * [2] + 5 * [3]


def test_a_crop_is_timms_own_of_the_original_file(whole):
    image_set = ShardedImageSet(Split.open(whole.workspace, "val"), "val")
    transform = create_transform(24, is_training=False, interpolation="bicubic", crop_pct=0.7, use_prefetcher=True)
    crops = next(centre_crops(image_set, 0, image_size=24, crop_pct=0.7, batch=20, threads=2))
    for row in (0, 1, 2, 19):
        with Image.open(Path(whole.source.val, crops.names[row])) as image:
            expected = np.asarray(transform(image.convert("RGB"))).transpose(1, 2, 0)
        assert np.array_equal(crops.views[row], expected)


def test_the_stored_result_is_what_the_trained_model_says_image_by_image(whole):
    stored_result = json.loads(Path(whole.workspace, "runs/student/evaluation.json").read_text())
    split = Split.open(whole.workspace, "val")
    model = new_student(whole, split).eval()
    model.model.load_state_dict(find_weights("run:student", whole.workspace, "x"))
    right = 0
    with torch.inference_mode():
        for crop in centre_crops(ShardedImageSet(split, "val"), 0, image_size=32, crop_pct=0.875, batch=1, threads=1):
            right += int(model(normalise(crop.views, model.mean, model.std)).fused.argmax(1) == crop.classes)
    assert stored_result["samples"] == 20
    assert stored_result["fused"]["top1"] == right / 20
    assert {"class", "distillation", "fused", "samples"} <= stored_result.keys()


def test_every_figure_can_be_counted_again_from_the_answers_it_names(whole):
    result = json.loads(Path(whole.workspace, "runs/student/evaluation.json").read_text())
    asked = predict_images(whole, ModelRef(run="student"), open_image_set(whole), silent)
    assert asked.folder == result["predictions"]
    again = score(asked.predictions, [{int(own)} for own in asked.predictions.classes])
    assert {key: result[key] for key in again} == again


def test_an_evaluation_that_is_done_reads_no_image_again(copied, monkeypatch):
    run = copied()
    before = stages.evaluate(run, silent)
    monkeypatch.setattr(ShardedImageSet, "read", None)
    assert stages.evaluate(run, silent) == before


def test_the_moving_average_can_be_measured_in_place_of_the_weights(copied):
    result = stages.evaluate(copied({"evaluate": {"weights": "ema"}}), silent)
    assert result["weights"] == "ema"
    assert result["samples"] == 20


def test_a_model_is_measured_at_another_size_with_its_positions_resampled(copied):
    run = copied({"evaluate": {"image_size": 48, "crop_pct": 1.0}})
    result = stages.evaluate(run, silent)
    assert (result["image_size"], result["crop_pct"]) == (48, 1.0)
    assert Path(run.workspace, "runs/student/evaluation-48px-crop1.json").exists()


def test_blocks_are_dealt_to_two_workers_and_every_image_is_asked_once(copied):
    """Three blocks of 21, 20 and 20 images in batches of 8, by two processes under Ray and by one without."""
    run = copied()
    image_set = ShardedImageSet(Split.open(run.workspace, "train"), "train")
    assert image_set.rows == (21, 20, 20)
    two = run.model_copy(update={"cluster": ClusterConfig(address="local", devices=2, device="cpu")})
    shared = predict_images(two, ModelRef(run="student"), image_set, silent)
    assert len(shared.predictions.names) == len(set(shared.predictions.names)) == 61
    files = stored(Path(run.workspace, shared.folder))
    shutil.rmtree(Path(run.workspace, shared.folder))
    alone = predict_images(run, ModelRef(run="student"), image_set, silent)
    assert alone.folder == shared.folder
    assert stored(Path(run.workspace, alone.folder)) == files


def test_a_source_of_several_blocks_is_read_as_one(images, monkeypatch, copied):
    run = copied({"evaluate": {"source": str(images / "train")}})
    whole = list(open_image_set(run).read(0, range(61)))
    monkeypatch.setattr("stages.data.image_set._BLOCK", 25)
    image_set = open_image_set(run)
    assert image_set.rows == (25, 25, 11)
    assert [one for block, rows in enumerate(image_set.rows) for one in image_set.read(block, range(rows))] == whole


def test_a_source_that_was_never_packed_is_measured_as_its_shards_are(copied, images):
    sharded = stages.evaluate(copied(), silent)
    run = copied({"evaluate": {"source": str(images / "val")}})
    result = stages.evaluate(run, silent)
    assert {key: result[key] for key in ("samples", "class", "fused")} == {
        key: sharded[key] for key in ("samples", "class", "fused")
    }
    assert result["images"].startswith("val-")
    assert Path(run.workspace, f"runs/student/evaluation-{result['images']}.json").exists()


def test_folders_that_are_class_indices_are_not_sorted_by_string(copied, tmp_path):
    """ImageNet-V2's layout with 12 classes: sorted as strings, 10 would come before 2."""
    names = [f"class-{number:02d}" for number in range(12)]
    write_images(tmp_path / "v2", {})
    for number in range(12):
        folder = tmp_path / "v2" / str(number)
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 40), (number * 20, 0, 0)).save(folder / "one.png")
    (tmp_path / "names.txt").write_text("\n".join(names))
    run = copied({"source": {"classes": str(tmp_path / "names.txt")}})
    shutil.rmtree(Path(run.workspace, "shards"))
    v2 = {"evaluate": {"source": str(tmp_path / "v2"), "class_folders": "indices"}}
    image_set = open_image_set(copied_with(run, v2))
    assert image_set.classes == tuple(names)
    found = {picture.name: picture.label for picture in image_set.read(0, range(12))}
    assert found == {f"{number}/one.png": number for number in range(12)}


def copied_with(run, changes):
    return run.model_copy(update={table: getattr(run, table).model_copy(update=new) for table, new in changes.items()})


def test_any_timm_model_with_any_weights_is_measured_by_the_same_code(copied, tmp_path):
    run = copied()
    student = stages.evaluate(run, silent)
    model = {"model": "deit_tiny_distilled_patch16_224", "extra": TINY_VIT, "checkpoint": "run:student"}
    result = stages.evaluate(copied_with(run, {"evaluate": model | {"image_size": 32}}), silent)
    assert result["run"] is None
    assert {key: result[key] for key in ("samples", "class", "fused")} == {
        key: student[key] for key in ("samples", "class", "fused")
    }
    peer = build("resnet18", num_classes=4, img_size=32, drop_path=0.0, extra={})
    save_file(peer.model.state_dict(), tmp_path / "peer.safetensors")
    both = {
        "model": ("deit_tiny_distilled_patch16_224", "resnet18"),
        "extra": (TINY_VIT, {}),
        "checkpoint": ("run:student", str(tmp_path / "peer.safetensors")),
        "image_size": 32,
    }
    results = stages.evaluate(copied_with(run, {"evaluate": both}), silent)
    assert results["fused"] == student["fused"]
    assert (results["others"][0]["name"], results["others"][0]["samples"]) == ("resnet18-peer", 20)
    (file,) = Path(run.workspace, "evaluations").glob("resnet18-peer-????????/evaluation-32px-crop0.875.json")
    assert json.loads(file.read_text()) == results["others"][0]


def test_bad_input_is_one_line(copied, images, tmp_path, refused):
    run = copied()

    def says(changes, code=1, run=run):
        return refused(stages.evaluate, copied_with(run, changes), silent, code=code)

    assert "there are: student, teacher" in refused(
        predict_images, run, ModelRef(run="nobody"), open_image_set(run), silent
    )
    assert "timm knows no model deit_tinny" in says({"evaluate": {"model": "deit_tinny_patch16_224"}})
    assert "evaluate.source = /no/such: no such folder" in says({"evaluate": {"source": "/no/such"}})
    shutil.copytree(images / "val/red", tmp_path / "other/purple")
    assert "class purple is not among the 4" in says({"evaluate": {"source": str(tmp_path / "other")}})
    save_file(
        build("resnet18", num_classes=9, img_size=32, drop_path=0.0, extra={}).model.state_dict(),
        tmp_path / "w.safetensors",
    )
    assert "does not fit resnet18: fc.weight is (9, 512), expected (4, 512)" in says(
        {"evaluate": {"model": "resnet18", "checkpoint": str(tmp_path / "w.safetensors")}}
    )
    real = {"evaluate": {"labels": "imagenet-real"}}
    assert "the 4 classes are not ImageNet's 1,000 in their order" in says(real, 4)
    assert "run:student" in says({"evaluate": {"model": "resnet18", "checkpoint": "run:student"}})
    write_images(tmp_path / "broken", dict.fromkeys(CLASSES, 1))
    (tmp_path / "broken/red/text.jpg").write_text("no image")
    assert "red/text.jpg: cannot be decoded" in says({"evaluate": {"source": str(tmp_path / "broken")}})
    shutil.rmtree(Path(run.workspace, "shards/val"))
    assert "split val is not sharded yet" in says({})
    assert "there is no val split; set source.val" in says({"source": {"val": ""}})


def test_a_val_split_of_other_classes_is_refused(copied, refused):
    run = copied()
    others = {"classes": ["blue", "green", "grey", "orange"]}

    def renamed(fields):
        fields.update(others if "classes" in fields else {})
        fields["made_from"].update(others)

    for name in ("plan.json", "manifest.json"):
        edit_state(Path(run.workspace, "shards/train", name), renamed)
    assert "the train split 4 or others" in refused(stages.evaluate, run, silent, code=4)
