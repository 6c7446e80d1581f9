"""Stored figures are of what they are shown for: heads that were trained, weights as they are, a run's own classes."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipeline.commands import run as stages
from pipeline.commands.compare import compare
from pipeline.commands.dry_run import dry_run
from pipeline.commands.evaluate import predict_images
from pipeline.commands.export import export
from stages.data.image_set import open_image_set
from stages.data.split import Split
from stages.evaluate.evaluated_model import ModelRef
from stages.models.classifier import build
from stages.models.student import trained_student
from stages.storage.run_files import MODEL_FILE
from tests.commands.test_analyses import with_
from tests.support.stored import edit_state
from tests.support.world import CLASSES, TINY_VIT, silent


@pytest.mark.parametrize(
    ("train", "left"),
    [({"distillation": "none"}, "class"), ({"alpha": 0.0}, "class"), ({"alpha": 1.0}, "distillation")],
)
def test_a_head_that_was_never_trained_is_named_not_ranked_and_not_exported(copied, tmp_path, train, left):
    run, said = copied({"train": {"name": "other", "max_steps": 2, **train}}), []
    stages.train(run, silent)
    result = stages.evaluate(run, said.append)
    other = {"class": "distillation", "distillation": "class"}[left]
    assert result["untrained_heads"] == [other] and result[left]
    assert result[other] is result["fused"] is result["fused_softmax"] is None
    assert any(f"the {other} head was never trained" in line for line in said)
    assert compare(run, ["other"], said.append)["runs"][0][left] == result[left]
    assert "not trained" in said[-2]
    export(run, "safetensors", str(tmp_path / "out"), silent)
    images = torch.randn(3, 3, 32, 32)
    model = trained_student(run, Split.open(run.workspace, "train"), MODEL_FILE).eval()
    exported = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.inference_mode():
        heads = model(images)
        wanted = heads.classes if left == "class" else heads.distillation
        torch.testing.assert_close(exported(images), wanted, atol=1e-5, rtol=1e-4)


def test_an_evaluation_of_another_step_or_crop_is_refused_by_compare_whose_advice_works(copied, refused):
    run = copied()
    stages.train(with_(run, train={"name": "short", "max_steps": 6}), silent)
    short = with_(run, train={"name": "short"})
    stages.evaluate(short, silent)
    stages.train(short, silent)
    line = refused(compare, run, ["short"], silent)
    assert "steps: 6 -> 12" in line and "evaluate --set train.name=short" in line
    stages.evaluate(short, silent)
    at_one = with_(run, evaluate={"crop_pct": 1.0})
    plain = Path(run.workspace, "runs/student/evaluation.json").read_bytes()
    stages.evaluate(at_one, silent)
    stages.evaluate(with_(run, evaluate={"weights": "ema"}), silent)
    assert Path(run.workspace, "runs/student/evaluation.json").read_bytes() == plain
    assert "is not evaluated" in refused(compare, at_one, ["short", "student"], silent)
    assert len(compare(run, ["short", "student"], silent)["runs"]) == 2


def test_an_evaluation_of_an_earlier_version_is_made_again(copied, refused):
    run, said = copied(), []
    file = Path(run.workspace, "runs/student/evaluation.json")
    result = json.loads(file.read_text())
    del result["untrained_heads"]
    file.write_text(json.dumps(result))
    assert "an earlier version made it" in refused(compare, run, ["student"], silent)
    stages.evaluate(run, said.append)
    assert any("is replaced (an earlier version made it" in line for line in said)
    compare(run, ["student"], silent)


def test_other_arguments_of_a_model_are_other_predictions(copied, refused):
    run = copied()
    member = {"model": "deit_tiny_distilled_patch16_224", "checkpoint": "run:student"}
    own = predict_images(with_(run, evaluate=member), ModelRef(member=with_(run, evaluate=member).evaluate.members[0]),
              open_image_set(run), silent)  # fmt: skip
    assert own.evaluated.image_size == 32 and own.evaluated.extra == TINY_VIT
    others = with_(run, evaluate=member | {"extra": TINY_VIT | {"num_heads": 4}})
    assert "num_heads: 3 -> 4" in refused(stages.evaluate, others, silent, code=4)


def test_a_model_of_timm_is_measured_at_timms_size_and_crop_unless_they_are_given(copied, tmp_path):
    run, said = copied(), []
    network = build("test_resnet", num_classes=len(CLASSES), img_size=160, drop_path=0.0, extra={}).model
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = {"model": "test_resnet", "checkpoint": str(tmp_path / "w.safetensors")}
    own = stages.evaluate(with_(run, evaluate=model), said.append)
    assert (own["image_size"], own["crop_pct"]) == (160, 0.95)
    assert [one["left"] for one in dry_run("evaluate", with_(run, evaluate=model), silent)["work"]] == [0]
    assert any("centre crops of 160 pixels at crop_pct 0.95" in line for line in said)
    (folder,) = Path(run.workspace, "evaluations").iterdir()
    assert [one.name for one in folder.iterdir()] == ["evaluation.json"]
    given = stages.evaluate(with_(run, evaluate=model | {"crop_pct": 0.875}), silent)
    assert (given["image_size"], given["crop_pct"]) == (160, 0.875)
    sized = stages.evaluate(with_(run, evaluate=model | {"image_size": 64}), silent)
    assert (sized["image_size"], sized["crop_pct"]) == (64, 0.875)


def test_a_run_is_measured_as_it_was_trained(copied):
    run = copied({"views": {"image_size": 48}, "student": {"img_size": 48, "drop_path": 0.3}})
    assert stages.evaluate(run, silent)["image_size"] == 32


def test_a_run_of_other_classes_is_refused(copied, images, tmp_path, refused):
    run = copied()
    (tmp_path / "classes.txt").write_text("red\ngrey\ngreen\nblue\n")
    other = with_(
        run, source={"classes": str(tmp_path / "classes.txt")}
    ).model_copy(update={"workspace": str(tmp_path / "reversed")})  # fmt: skip
    stages.shard(other, silent)
    shutil.copytree(Path(run.workspace, "runs"), tmp_path / "reversed/runs")
    assert "was trained for other classes" in refused(stages.evaluate, other, silent, code=4)
    assert "was trained for other classes" in refused(export, other, "onnx", str(tmp_path / "out"), silent, code=4)
    teacher = with_(other, evaluate={"model": other.teacher.model, "checkpoint": "run:teacher"})
    assert "was trained for other classes" in refused(stages.evaluate, teacher, silent, code=4)
    edit_state(tmp_path / "reversed/runs/student/manifest.json", lambda fields: fields.pop("classes"))  # of 0.1.0
    assert "order of its classes is not known" in refused(stages.evaluate, other, silent, code=4)
    assert "order of its classes is not known" in refused(
        export, other, "safetensors", str(tmp_path / "out"), silent, code=4
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../other", "..", "", "a/b", ".hidden", "a\n"])
def test_names_lead_nowhere_else(copied, refused, name):
    run = copied()
    assert "must be a folder name" in refused(compare, run, [name], silent)
    for table, key in (("evaluate", "baseline"), ("teacher", "checkpoint"), ("student", "init_checkpoint")):
        if key != "baseline" or name:
            value = name if key == "baseline" else f"run:{name}"
            assert "must be a folder name" in refused(copied_again, run, {table: {key: value}})


def copied_again(run, changes):
    from schemas.run_file import parse_run

    values = run.model_dump(mode="json")
    for table, keys in changes.items():
        values[table] |= keys
    return parse_run(values, "test")


def test_an_export_replaces_nothing_foreign_and_is_whole_or_absent(whole, tmp_path, refused, monkeypatch):
    out = tmp_path / "out"
    export(whole, "huggingface", str(out), silent)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    export(whole, "huggingface", str(out), silent)  # the same again is no harm
    assert "holds README.md" in refused(export, whole, "torch-export", str(out), silent)
    (out / "README.md").write_text("mine")
    assert "--force" in refused(export, whole, "huggingface", str(out), silent)
    assert (out / "README.md").read_text() == "mine"
    (out / "notes.txt").write_text("mine")
    export(whole, "safetensors", str(out), silent, force=True)
    assert {file.name for file in out.iterdir()} == {"config.json", "model.safetensors", "notes.txt"}
    assert (out / "model.safetensors").read_bytes() == before["model.safetensors"]

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stages.models.export_folder._write", full)
    assert "No space left" in refused(export, whole, "safetensors", str(tmp_path / "new"), silent)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".deit-export-*"))
    stage = str(Path(whole.workspace, "runs/student"))
    assert "as a stage of a workspace does" in refused(export, whole, "safetensors", stage, silent, force=True)
