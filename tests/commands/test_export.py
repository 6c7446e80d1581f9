"""Exports give the logits of the trained model wherever they are loaded; the card's figures are the workspace's."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import resolve_model_data_config

from pipeline.commands import run as stages
from pipeline.commands.export import export
from stages.data.split import Split
from stages.models.student import new_student
from tests.support.world import CLASSES, TEACHER, TINY_VIT, run_file, silent

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def logits(whole) -> torch.Tensor:
    """Of the trained student, its heads read one by one and fused by hand."""
    model = new_student(whole, Split.open(whole.workspace, "train"))
    model.model.load_state_dict(load_file(Path(whole.workspace, "runs/student/model.safetensors")))
    with torch.inference_mode():
        heads = model.eval()(IMAGES)
    return (heads.classes + heads.distillation) / 2


def close(found, logits: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(np.asarray(found)), logits, atol=1e-5, rtol=1e-4)


def test_timm_builds_the_model_from_the_folder_alone(whole, tmp_path, logits):
    result = export(whole, "safetensors", str(tmp_path / "out"), silent)
    assert sorted(result["files"]) == ["config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.inference_mode():
        close(model(IMAGES), logits)
    data = resolve_model_data_config(model)
    assert (data["input_size"], data["crop_pct"], data["interpolation"]) == ((3, 32, 32), 0.875, "bicubic")
    assert (*data["mean"], *data["std"]) == (0.485, 0.456, 0.406, 0.229, 0.224, 0.225)
    assert json.loads((tmp_path / "out/config.json").read_text())["label_names"] == list(CLASSES)


def test_timm_loads_the_weights_as_a_checkpoint(whole, tmp_path, logits):
    export(whole, "safetensors", str(tmp_path), silent)
    path = str(tmp_path / "model.safetensors")
    name = "deit_tiny_distilled_patch16_224"
    model = timm.create_model(name, checkpoint_path=path, num_classes=4, img_size=32, **TINY_VIT).eval()
    with torch.inference_mode():
        close(model(IMAGES), logits)


def test_onnx_gives_the_same_logits_for_any_batch(whole, tmp_path, logits):
    pytest.importorskip("onnxscript", reason="needs pip install 'deit-pipeline[export]'")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime to run what was exported")
    export(whole, "onnx", str(tmp_path), silent)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for count in (1, 3):
        close(session.run(["logits"], {"images": IMAGES[:count].numpy()})[0], logits[:count])


def test_torch_export_gives_the_same_logits_for_any_batch(whole, tmp_path, logits):
    export(whole, "torch-export", str(tmp_path), silent)
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.inference_mode():
        for count in (1, 3):
            close(program(IMAGES[:count]), logits[:count])


def test_a_model_with_one_head_is_exported_as_well(whole, tmp_path):
    run = run_file(whole.workspace, Path(whole.source.train).parent, TEACHER)
    export(run, "safetensors", str(tmp_path), silent)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    kept = load_file(Path(whole.workspace, "runs/teacher/model.safetensors"))
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_the_cards_figures_are_those_of_the_workspace(whole, tmp_path):
    export(whole, "huggingface", str(tmp_path), silent)
    card = (tmp_path / "README.md").read_text()
    workspace = Path(whole.workspace)
    manifest = json.loads((workspace / "runs/student/manifest.json").read_text())
    labels = json.loads((workspace / "labels/teacher/manifest.json").read_text())
    found = json.loads((workspace / "runs/student/evaluation.json").read_text())
    model = load_file(tmp_path / "model.safetensors")
    for line in (
        f"with {sum(value.numel() for value in model.values()):,} parameters for 4 classes",
        "| training images | 61 |",
        f"| last mean loss | {manifest['loss']} |",
        "| steps taken | 12 |",
        "| train.lr | 0.01 |",
        "| views.repeats | 2 |",
        f"| teacher's weights, sha256 | {labels['made_from']['teacher']['weights_sha256']} |",
        f"| class head | {found['class']['top1']:.2%} | {found['class']['top5']:.2%} |",
        f"| mean of both heads' logits | {found['fused']['top1']:.2%} | {found['fused']['top5']:.2%} |",
    ):
        assert line in card


def test_the_card_of_weights_that_were_not_evaluated_says_so(copied, tmp_path):
    stages.train(copied({"train": {"epochs": 4, "name": "other", "max_steps": 2}}), silent)
    for run in (copied({"train": {"name": "other"}}), copied({"evaluate": {"weights": "ema"}})):
        export(run, "huggingface", str(tmp_path / "out"), silent, force=True)
        card = (tmp_path / "out/README.md").read_text()
        assert "These weights were not evaluated." in card and "top-1" not in card


@pytest.mark.parametrize(("distillation", "warned"), [("none", True), ("hard", False)])
def test_a_distillation_head_that_never_trained_is_warned_of(copied, tmp_path, distillation, warned):
    run = copied({"train": {"name": "other", "max_steps": 2, "distillation": distillation}})
    stages.train(run, silent)
    said = []
    export(run, "huggingface", str(tmp_path / "out"), said.append)
    card = (tmp_path / "out/README.md").read_text()
    assert any(line.startswith("warning: the distillation head was never trained") for line in said) == warned
    assert ("Beware: the distillation head was never trained" in card) == warned


def test_the_moving_average_is_exported_where_the_run_file_evaluates_it(whole, tmp_path):
    run = whole.model_copy(update={"evaluate": whole.evaluate.model_copy(update={"weights": "ema"})})
    export(run, "safetensors", str(tmp_path), silent)
    kept = load_file(Path(whole.workspace, "runs/student/model_ema.safetensors"))
    assert torch.equal(load_file(tmp_path / "model.safetensors")["head.weight"], kept["head.weight"])


def test_what_cannot_be_exported_is_refused_in_one_line(whole, copied, tmp_path, refused, monkeypatch):
    assert "unknown; allowed: safetensors, huggingface, onnx, torch-export" in refused(
        export, whole, "tflite", str(tmp_path), silent
    )
    assert "is not trained to its end" in refused(
        export, copied({"train": {"name": "never"}}), "safetensors", str(tmp_path / "out"), silent
    )
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(export, whole, "safetensors", str(tmp_path / "file"), silent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = refused(export, whole, "onnx", str(tmp_path / "out"), silent)
    assert line == "--format onnx: needs onnx; pip install 'deit-pipeline[export]'"
