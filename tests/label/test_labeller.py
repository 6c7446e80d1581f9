"""Labels are a function of shards, recipe and teacher: not of workers, of how passes are dealt, or of what is added."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file

from pipeline.commands import label
from pipeline.commands import run as stages
from pipeline.commands.label import label_specs
from schemas.manifests import LabelManifest
from schemas.plan import Plan
from schemas.recipe import Recipe
from schemas.tables import HARD
from stages.data.image_set import ShardedImageSet
from stages.data.split import Split
from stages.evaluate.evaluated_model import ModelRef, open_evaluated_model
from stages.label.dataset import part_batches
from stages.label.label_set import LabelSpec
from stages.label.labeller import Labeller
from stages.label.stability import stability
from stages.replay.signature import signed_rows
from stages.storage.commit import valid_receipts
from stages.storage.manifest import open_manifest
from stages.storage.store import Store
from stages.train.plan import plan_training
from stages.train.trainer import Trainer
from tests.support.stored import edit_state
from tests.support.world import TINY_VIT, decisions, flip_byte, run_file, silent, stored


def files(run, name: str = "teacher") -> dict[str, bytes]:
    return stored(Path(run.workspace, "labels", name))


def test_label_files_are_the_same_bytes_for_any_number_of_workers(fresh, whole):
    one_shard = {"shards": {"samples_per_shard": 61}}  # each part starts its workers anew, which takes a second
    stages.shard(fresh(one_shard), silent)
    shutil.copytree(Path(whole.workspace, "runs/teacher"), Path(fresh().workspace, "runs/teacher"))
    for workers in (0, 1, 3):
        stages.label(fresh(one_shard, {"labels": {"name": f"by-{workers}", "views": 4, "workers": workers}}), silent)
    assert files(fresh(), "by-0") == files(fresh(), "by-1") == files(fresh(), "by-3")
    assert len(files(fresh(), "by-0")) == 5


def test_raising_views_adds_files_and_changes_none_and_equals_labelling_all_at_once(copied, whole, images):
    more = copied({"labels": {"views": 10}})
    result = stages.label(more, silent)
    assert (result["views"], result["new_parts"]) == (10, 6)
    before, after = files(whole), files(more)
    lost = {name for name in before if name not in after or after[name] != before[name]}
    assert {name.partition("/")[0] for name in lost} == {"manifest.json", "plan.json", "manifest"}
    plans = [Plan.from_json(one["plan.json"], "plan").fields() for one in (before, after)]
    assert [plan.pop("wanted") for plan in plans] == [6, 12]  # parts, for `status`
    assert plans[0] == plans[1]
    at_once = run_file(more.workspace, images, {"labels": {"name": "at-once", "views": 10, "passes_per_part": 5}})
    assert stages.label(at_once, silent)["parts"] == 3
    assert decisions(more.workspace) == decisions(more.workspace, "at-once")
    assert list(decisions(whole.workspace).items() - decisions(more.workspace).items()) == []


def test_a_teacher_that_is_a_run_of_other_shards_is_warned_of(fresh, whole):
    run, said = fresh({"shards": {"samples_per_shard": 61}}, {"labels": {"name": "x", "views": 2}}), []
    stages.shard(run, silent)
    shutil.copytree(Path(whole.workspace, "runs/teacher"), Path(run.workspace, "runs/teacher"))
    stages.label(run, said.append)
    assert not any("another train split" in line for line in said)  # the run says its classes, and they are these
    manifest = Path(run.workspace, "runs/teacher/manifest.json")
    edit_state(manifest, lambda fields: fields.pop("classes"))  # as version 0.1.0 left it
    stages.label(run, said.append)
    assert any("run:teacher was trained on another train split" in line for line in said)
    said.clear()
    stages.label(whole, said.append)
    assert not any("another train split" in line for line in said)


@pytest.mark.parametrize("key", ["teacher.checkpoint", "student.init_checkpoint"])
def test_a_run_of_the_classes_in_another_order_is_no_teacher_and_no_start(fresh, whole, refused, tmp_path, key):
    (tmp_path / "classes.txt").write_text("red\ngrey\ngreen\nblue\n")
    plain = {"model": "deit_tiny_patch16_224", "init_checkpoint": "run:teacher"}
    run = fresh({"source": {"classes": str(tmp_path / "classes.txt"), "val": ""}}, {"student": plain})
    run = run.model_copy(update={"train": run.train.model_copy(update={"distillation": "none", "max_steps": 1})})
    stages.shard(run, silent)
    shutil.copytree(Path(whole.workspace, "runs/teacher"), Path(run.workspace, "runs/teacher"))
    stage = stages.label if key == "teacher.checkpoint" else stages.train
    assert "runs/teacher: was trained for other classes" in refused(stage, run, silent, code=4)
    assert not Path(run.workspace, "labels").exists() and not Path(run.workspace, "runs/student").exists()
    fields = {"student": run.student.model_copy(update={"new_head": True})}
    split, cpu = Split.open(run.workspace, "train"), torch.device("cpu")
    if key == "teacher.checkpoint":
        for ask in (
            lambda: stability(run, split, cpu, 2),
            lambda: open_evaluated_model(run, ModelRef(), ShardedImageSet(split, "train"), cpu),
        ):
            assert "runs/teacher: was trained for other classes" in refused(ask, code=4)
    else:
        assert stages.train(run.model_copy(update=fields), silent)["steps"] == 1


OTHERS = {
    "recipe.seed: 0 -> 1": {"views": {"seed": 1}},
    "recipe.erasing_prob: 0.25 -> 0.5": {"views": {"erasing_prob": 0.5}},
    "teacher.batch_size: 16 -> 8": {"teacher": {"batch_size": 8}},
    "teacher.precision": {"teacher": {"precision": "bf16"}},
    "teacher.weights_sha256": {"teacher": {"checkpoint": "run:student", "model": "deit_tiny_distilled_patch16_224"}},
    "store": {"labels": {"store": "topk", "topk": 2}},
}


@pytest.mark.parametrize("difference", OTHERS)
def test_labels_made_from_something_else_are_never_mixed_with(copied, refused, difference):
    run = copied(OTHERS[difference])
    before = files(run)
    line = refused(stages.label, run, silent, code=4)
    assert difference in line and "use another labels.name" in line
    assert files(run) == before


def test_labels_of_views_that_an_earlier_version_rotated_are_refused_and_not_mixed_with(copied, refused, monkeypatch):
    run = copied({"labels": {"name": "earlier"}, "train": {"name": "new"}})
    with monkeypatch.context() as version:
        version.setattr(Recipe, "identity", lambda self: self.model_dump(mode="json"))
        stages.label(run, silent)
    for stage in (stages.label, stages.train):
        line = refused(stage, run, silent, code=4)
        assert "earlier version" in line and "recipe.rotation: null -> 2" in line and "labels.name" in line
    again = run.model_copy(update={"labels": run.labels.model_copy(update={"name": "again"})})
    stages.label(again, silent)
    assert stages.train(again, silent)["steps"] == 12


def test_labels_for_other_shards_are_refused_by_labelling_and_by_training(copied, refused):
    run = copied({"shards": {"seed": 1}})
    shutil.rmtree(Path(run.workspace, "shards"))
    stages.shard(run, silent)
    assert "shards: " in refused(stages.label, run, silent, code=4)
    other = copied({"shards": {"seed": 1}, "train": {"name": "other"}})
    assert "shards: " in refused(stages.train, other, silent, code=4)


def test_a_changed_image_ends_the_stage_in_one_line_with_nothing_done(copied, refused):
    run = copied({"labels": {"name": "new"}})
    index = Split.open(run.workspace, "train").index(1)
    flip_byte(Path(run.workspace, "shards/train/shard-000001.tar"), int(index.offsets[3]) + 50)
    line = refused(stages.label, run, silent)
    assert f"shard-000001.tar: image {index.names[3]} (row 3) has other bytes" in line
    done = valid_receipts(Store(run.workspace).child("labels/new"))
    assert all(name.startswith("shard-000000") for name in done)


def test_a_damaged_label_file_is_never_used(copied, refused):
    run = copied({"train": {"name": "new"}})
    flip_byte(sorted(Path(run.workspace, "labels/teacher").glob("*.parquet"))[0], 100)
    assert "passes-00000-00002.parquet" in refused(stages.train, run, silent)


def test_lowering_views_makes_nothing_and_deletes_nothing(copied, whole):
    run = copied({"labels": {"views": 2}})
    assert stages.label(run, silent)["new_parts"] == 0
    made, truth = ({name for name in files(one) if not name.startswith("manifest/")} for one in (run, whole))
    assert made == truth


def test_label_parts_cover_every_pass_once_whatever_was_done_before():
    done = {"shard-000001.passes-00000-00003": None, "shard-000000.passes-00002-00004": None}
    specs = label_specs(done, shards=2, passes=7, passes_per_part=4)
    passes = sorted((spec.shard, p) for spec in specs for p in range(spec.first_pass, spec.end_pass))
    assert passes == [(shard, p) for shard in range(2) for p in range(7)]
    assert {spec.name for spec in specs} >= done.keys()
    assert [spec.first_pass for spec in specs] == sorted(spec.first_pass for spec in specs)


def test_a_parts_name_says_which_part_it_is():
    spec = LabelSpec(12, 3, 40)
    assert spec.name == "shard-000012.passes-00003-00040"
    assert LabelSpec.parse(spec.name) == spec


def test_every_mixed_view_has_one_decision_and_a_few_have_signatures(whole):
    split = Split.open(whole.workspace, "train")
    found = decisions(whole.workspace)
    views = {(shard, view) for shard, _, view in found}
    assert views == {(shard, view) for shard in range(3) for view in range(6)}
    assert len(found) == 3 * 20 * 6  # of 21, 20 and 20: an odd sample sits out
    for file in Path(whole.workspace, "labels/teacher").glob("*.parquet"):
        table = pq.read_table(file)
        assert table.schema == HARD
        rows = table.to_pylist()
        assert rows == sorted(rows, key=lambda row: (row["row"], row["view"]))
        signed = {(row["row"], row["view"]) for row in rows if row["signature"] is not None}
        here = {(row["row"], row["view"]) for row in rows}
        expected = {(r, v) for _, v in here for r in signed_rows(v, split.rows[rows[0]["shard"]])}
        assert signed == expected & here != set()


@pytest.fixture
def seen_by_the_teacher(whole, tmp_path) -> dict[tuple[int, int, int], torch.Tensor]:
    """Address → the very tensor that went into the teacher, of one part."""
    split, spec = Split.open(whole.workspace, "train"), LabelSpec(1, 0, 2)
    labeller, inputs = Labeller(whole, split, "cpu"), []
    labeller.teacher.models[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))
    labeller(spec, tmp_path)
    batches = list(part_batches(split, whole.views, spec, whole.teacher.batch_size))
    slots = [(1, row, unit.view) for units in batches for unit in units for row in (unit.row_a, unit.row_b)]
    return dict(zip(slots, torch.cat(inputs[: len(batches)]), strict=True))


def test_the_teacher_sees_the_very_mixed_tensor_that_the_student_sees(whole, seen_by_the_teacher):
    trainer = Trainer(whole, plan_training(whole, 1), rank=0, world=1, device=torch.device("cpu"))
    inputs = []
    trainer.classifier.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))
    compared = 0
    for step in range(15):
        units = trainer.data.units(step)
        trainer._losses(trainer.data[step])
        slots = [(unit.shard, row, unit.view) for unit in units for row in (unit.row_a, unit.row_b)]
        for address, image in zip(slots, inputs[-1], strict=True):
            if address in seen_by_the_teacher:
                assert torch.equal(image, seen_by_the_teacher[address])
                compared += 1
    assert compared == len(seen_by_the_teacher) == 80


def test_decisions_are_what_timms_own_model_says_of_those_tensors(whole, seen_by_the_teacher):
    model = timm.create_model("deit_tiny_patch16_224", num_classes=4, img_size=32, **TINY_VIT).eval()
    model.load_state_dict(load_file(Path(whole.workspace, "runs/teacher/model.safetensors")))
    with torch.inference_mode():
        logits = model(torch.stack(list(seen_by_the_teacher.values())))
    clear = (logits.topk(2).values[:, 0] - logits.topk(2).values[:, 1]) > 1e-4
    said = dict(zip(seen_by_the_teacher, logits.argmax(1).tolist(), strict=True))
    stored_decisions = decisions(whole.workspace)
    wrong = [a for a, sure in zip(said, clear, strict=True) if sure and said[a] != stored_decisions[a]]
    assert wrong == []
    assert clear.sum() > 70 and len(set(said.values())) > 2


def test_the_manifest_says_what_made_the_labels(whole):
    manifest = json.loads(files(whole)["manifest.json"])
    made_from = manifest["made_from"]
    assert made_from["shards"] == Split.open(whole.workspace, "train").content
    assert made_from["recipe"] == whole.views.identity()
    assert made_from["teacher"]["model"] == "deit_tiny_patch16_224"
    assert len(made_from["teacher"]["weights_sha256"]) == 64
    assert manifest["versions"]["torch"] == torch.__version__
    found = open_manifest(Store(whole.workspace).child("labels/teacher"), LabelManifest)
    part = next(iter(found.parts)).files[0]
    data = files(whole)[part.path]
    assert (part.bytes, part.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_teachers_agreement_is_counted_over_every_image_and_every_decision(whole, copied):
    result = stages.label(copied(), silent)
    manifest = json.loads(files(whole)["manifest.json"])
    split, found = Split.open(whole.workspace, "train"), decisions(whole.workspace)
    own = np.mean([split.index(s).classes[r] == decision for (s, r, _), decision in found.items()])
    assert manifest["mixed_agreement"]["own"] == pytest.approx(own)
    assert sum(manifest["mixed_agreement"].values()) == pytest.approx(1)
    assert 0.8 < manifest["agreement"] == result["agreement"] <= 1
    assert (result["decisions"], result["parts"], result["new_parts"]) == (360, 6, 0)


def test_a_shard_whose_only_image_has_no_partner_gets_an_empty_part(fresh, whole):
    run = fresh({"shards": {"samples_per_shard": 2}, "labels": {"views": 2}})
    shutil.copytree(Path(whole.workspace, "runs/teacher"), Path(run.workspace, "runs/teacher"))
    stages.shard(run, silent)
    assert set(Split.open(run.workspace, "train").rows) == {1, 2}
    assert stages.label(run, silent)["decisions"] == 2 * 60
    receipts = valid_receipts(Store(run.workspace).child("labels/teacher"))
    assert sorted(receipt.rows for receipt in receipts.values()) == [0] + 30 * [4]
    short = fresh({"shards": {"samples_per_shard": 2}, "labels": {"views": 2}}, {"train": {"max_steps": 2}})
    assert stages.train(short, silent)["steps"] == 2


def test_a_whole_label_set_is_recognised_by_its_manifest_and_no_receipt_is_read(copied, monkeypatch):
    first = stages.label(copied(), silent)
    monkeypatch.setattr(label, "valid_receipts", lambda _: pytest.fail("receipts are read"))
    assert first["new_parts"] == 0 and stages.label(copied(), silent) == first
    assert first["decisions"] == len(decisions(copied().workspace))
