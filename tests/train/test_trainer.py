"""Training: the loss is the stored decisions', bits do not depend on workers, and what matters may not change."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from pipeline.commands import run as stages
from stages.data.loader import moved
from stages.models import classifier, state_dict
from stages.train.plan import plan_training
from stages.train.trainer import Trainer
from tests.support.world import decisions, silent, stored


def weights(run, name: str = "student", file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(Path(run.workspace, "runs", name, file))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metrics(run, name: str = "student") -> list[dict]:
    return [json.loads(line) for line in Path(run.workspace, "runs", name, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 3])
def test_weights_are_the_same_bits_for_any_number_of_loader_workers(copied, whole, workers):
    run = copied({"train": {"name": "again", "workers": workers}})
    stages.train(run, silent)
    assert equal(weights(run, "again"), weights(whole))


def test_a_run_stopped_early_and_prolonged_has_the_bits_of_one_in_one_go(copied, whole):
    first = stages.train(copied({"train": {"name": "again", "max_steps": 5}}), silent)
    assert (first["steps"], first["resumed_from_step"]) == (5, 0)
    run = copied({"train": {"name": "again"}})
    assert stages.train(run, silent)["resumed_from_step"] == 5
    assert equal(weights(run, "again"), weights(whole))
    assert equal(weights(run, "again", "model_ema.safetensors"), weights(whole, file="model_ema.safetensors"))


def test_a_run_that_took_more_steps_than_are_wanted_is_refused_rather_than_called_done(copied, refused):
    run = copied({"train": {"max_steps": 5}})
    Path(run.workspace, "runs/student/manifest.json").unlink()
    line = refused(stages.train, run, silent)
    assert "its newest checkpoint took 12 steps, the run file wants 5; raise train.max_steps" in line
    assert not Path(run.workspace, "runs/student/manifest.json").exists()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on CPUs")
def test_a_compiled_training_draws_the_same_depths_and_ends_near_the_plain_ones_weights(copied, whole, monkeypatch):
    compiled, compile_ = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: compiled.append(how) or compile_(model, **how))
    deep = {"student": {"drop_path": 0.5, "drop_rate": 0.3}, "train": {"max_steps": 3, "lr": 0.001, "name": "plain"}}
    stages.train(copied(deep), silent)
    stages.train(copied(deep, {"train": {"compile": True, "name": "fast"}}), silent)
    assert len(compiled) == 1
    for plain, fast in zip(metrics(copied(), "plain"), metrics(copied(), "fast"), strict=True):
        assert fast["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_a_finished_run_is_left_alone(copied, whole):
    result = stages.train(copied(), silent)
    assert (result["steps"], result["resumed_from_step"]) == (12, 12)
    assert result["loss"] == json.loads(stored(Path(whole.workspace))["runs/student/manifest.json"])["loss"]


def test_a_run_shorter_than_its_first_line_of_metrics_has_a_loss(copied):
    result = stages.train(copied({"train": {"name": "short", "max_steps": 3, "log_every": 50}}), silent)
    assert 1 < result["loss"] < 2


def test_micro_batches_accumulate_to_the_whole_batch(copied, images):
    steady = {"student": {"drop_path": 0.0}}
    whole_batch = copied(steady, {"train": {"name": "whole", "max_steps": 6, "warmup_epochs": 0}})
    pieces = copied(steady, {"train": {"name": "pieces", "max_steps": 6, "warmup_epochs": 0, "micro_batch": 6}})
    stages.train(whole_batch, silent)
    stages.train(pieces, silent)
    one, other = weights(whole_batch, "whole"), weights(pieces, "pieces")
    assert not equal(one, weights(pieces, "student"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-5, rtol=1e-3)
    for first, second in zip(metrics(whole_batch, "whole"), metrics(pieces, "pieces"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)


def losses_by_hand(run, shuffled: bool) -> dict[str, float]:
    """Both losses of the first batch in numpy, decisions read with a Parquet reader, logits from timm's own model."""
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=torch.device("cpu"))
    batch, units, stored_decisions = trainer.data[0], trainer.data.units(0), decisions(run.workspace)
    inputs = []
    trainer.classifier.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    trainer._losses(batch)
    with torch.inference_mode():
        network = trainer.classifier.model.eval()
        network.set_distilled_training(True)
        heads = network.train()(inputs[0])
    log_p = [logits - np.log(np.exp(logits).sum(1, keepdims=True)) for logits in (h.double().numpy() for h in heads)]
    slots = [(u.shard, row, u.view) for u in units for row in (u.row_a, u.row_b)]
    teacher = np.array([stored_decisions[address] for address in slots])
    if shuffled:
        teacher = np.roll(teacher, 1)
    lam = batch.mix.lam.double().numpy().repeat(2)[:, None]
    own = np.eye(4)[batch.classes.numpy()]
    partner = own.reshape(-1, 2, 4)[:, ::-1].reshape(-1, 4)
    targets = 0.9 * (lam * own + (1 - lam) * partner) + 0.1 / 4
    return {
        "class_loss": -(targets * log_p[0]).sum(1).mean(),
        "teacher_loss": -log_p[1][np.arange(len(teacher)), teacher].mean(),
    }


def test_the_losses_are_the_stored_decisions_and_the_mixed_classes_computed_by_hand(copied):
    run = copied({"train": {"name": "loss", "log_every": 1, "max_steps": 1}, "student": {"drop_path": 0.0}})
    by_hand = losses_by_hand(run, shuffled=False)
    stages.train(run, silent)
    line = metrics(run, "loss")[0]
    assert line["class_loss"] == pytest.approx(by_hand["class_loss"], rel=1e-5)
    assert line["teacher_loss"] == pytest.approx(by_hand["teacher_loss"], rel=1e-5)
    assert line["loss"] == pytest.approx((by_hand["class_loss"] + by_hand["teacher_loss"]) / 2, rel=1e-5)
    assert line["teacher_loss"] != pytest.approx(losses_by_hand(run, shuffled=True)["teacher_loss"], rel=1e-3)


def test_no_teacher_is_built_or_read_while_the_student_trains(copied, monkeypatch):
    run = copied({"train": {"name": "alone"}})
    shutil.rmtree(Path(run.workspace, "runs/teacher"))
    built, create = [], timm.create_model
    monkeypatch.setattr(
        classifier.timm, "create_model", lambda name, **more: built.append(name) or create(name, **more)
    )
    stages.train(run, silent)
    assert set(built) == {"deit_tiny_distilled_patch16_224"}


def test_the_same_student_without_a_teacher_trains_without_labels(copied):
    run = copied({"train": {"name": "plain", "distillation": "none", "max_steps": 4}})
    shutil.rmtree(Path(run.workspace, "labels"))
    stages.train(run, silent)
    assert "teacher_loss" not in metrics(run, "plain")[0]


def test_views_are_shown_again_only_if_the_run_file_says_so(copied, refused):
    long = {"train": {"name": "long", "epochs": 8}}
    line = refused(stages.train, copied(long), silent)
    assert line.startswith("24 steps of 16 need 8 views of each sample, 6 are labelled; ")
    again = copied(long, {"train": {"reuse_views": True}})
    assert stages.train(again, silent)["steps"] == 24


def test_a_run_that_shows_views_again_refuses_labels_that_were_raised_under_it(copied, refused):
    again = {"train": {"name": "long", "epochs": 8, "reuse_views": True}}
    stages.train(copied(again, {"train": {"max_steps": 3}}), silent)
    stages.label(copied({"labels": {"views": 8}}), silent)
    line = refused(stages.train, copied(again, {"labels": {"views": 8}}), silent, code=4)
    assert "passes: 3 -> 4" in line


def test_a_loss_that_is_not_finite_ends_the_run_and_enters_no_checkpoint(copied, refused):
    run = copied({"train": {"name": "wild", "lr": 1e30, "warmup_lr": 1e30, "log_every": 50, "checkpoint_every": 1}})
    line = refused(stages.train, run, silent)
    assert re.match(
        r"the loss of step 1 is not finite; its batch goes from shard \d, rows \d+ and \d+, view \d to ", line
    )
    assert "lower train.lr" in line
    folder = Path(run.workspace, "runs/wild")
    assert not (folder / "manifest.json").exists()
    for file in (folder / "checkpoints").rglob("*.safetensors"):
        if "state" in file.name:
            assert torch.isfinite(load_file(file).get("metrics/loss", torch.tensor(0.0)))


def test_bad_weights_under_good_losses_enter_no_checkpoint_either(copied, refused, monkeypatch):
    whole_step = Trainer.step

    def step(trainer, batch):
        whole_step(trainer, batch)
        if batch.step == 4:
            with torch.no_grad():
                trainer.classifier.model.head.bias[1] = float("inf")

    monkeypatch.setattr(Trainer, "step", step)
    run = copied({"train": {"name": "wild", "checkpoint_every": 1, "log_every": 50}})
    line = refused(stages.train, run, silent)
    assert line.startswith("head.bias is not finite after step 4 though the losses were; its batch goes from shard ")
    kept = sorted(path.name for path in Path(run.workspace, "runs/wild/checkpoints").iterdir())
    assert kept == ["step-000000003", "step-000000004"]


def test_the_moving_average_is_the_formula_by_hand(copied):
    run = copied({"train": {"name": "average", "ema_decay": 0.75, "max_steps": 4, "checkpoint_every": 1}})
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=torch.device("cpu"))
    by_hand = {name: value.double() for name, value in trainer.classifier.model.state_dict().items()}
    for step in range(4):
        trainer.step(trainer.data[step])
        for name, value in trainer.classifier.model.state_dict().items():
            by_hand[name] = 0.75 * by_hand[name] + 0.25 * value.double()
    for name, value in trainer.ema.module.state_dict().items():
        torch.testing.assert_close(value.double(), by_hand[name], atol=1e-6, rtol=1e-5)
        assert not torch.equal(value, trainer.classifier.model.state_dict()[name])


@pytest.mark.parametrize(("model", "spread"), [("test_resnet", True), ("test_vit", False)])
def test_ranks_of_a_student_with_batch_norm_get_a_steps_pair_views_in_turn(copied, model, spread):
    run = copied({"student": {"model": model, "extra": {}}, "train": {"name": "x", "distillation": "none"}})
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=torch.device("cpu"))
    trainer.data._slice["world"] = 2  # as of two ranks, without a process group
    units = list(trainer.data.units(0))
    images = {(unit.shard, unit.row_a) for unit in units}
    assert (len(images) == len(units)) == spread, "the 2 repeats of an image are on one rank without it"


def test_a_student_is_fine_tuned_at_another_resolution_with_labels_made_there(copied, whole):
    at = {
        "views": {"image_size": 48},
        "labels": {"name": "teacher-48"},
        "student": {"init_checkpoint": "run:student"},
        "train": {"name": "student-48", "max_steps": 2, "lr": 1e-9, "warmup_lr": 0.0, "min_lr": 0.0, "log_every": 1},
    }
    run = copied(at)
    stages.label(run, silent)
    stages.train(run, silent)
    before, after = weights(whole), weights(run, "student-48")
    assert after["pos_embed"].shape == (1, 2 + 36, 48)
    positions = state_dict.resample_positions(before["pos_embed"], grid=(6, 6), prefix=2)
    torch.testing.assert_close(after["pos_embed"], positions, atol=1e-6, rtol=0)
    torch.testing.assert_close(after["head_dist.weight"], before["head_dist.weight"], atol=1e-6, rtol=0)
    assert metrics(run, "student-48")[0]["teacher_loss"] > 0


def test_a_step_asks_the_device_for_nothing_so_that_it_never_waits(copied, monkeypatch):
    run = copied({"train": {"name": "meta", "ema_decay": 0.0, "log_every": 50, "micro_batch": 8}})
    plan = plan_training(run, 1)
    trainer = Trainer(run, plan, rank=0, world=1, device=torch.device("meta"))  # has no values to be asked for
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # does not know that device
    for step in (0, 1):
        trainer.step(moved(trainer.data[step], trainer.device))
    losses_of = trainer._losses
    monkeypatch.setattr(trainer, "_losses", lambda batch: losses_of(batch) | {"asked": losses_of(batch)["loss"].item()})
    with pytest.raises(RuntimeError, match="meta tensors"):
        trainer.step(moved(trainer.data[2], trainer.device))


def test_weights_of_other_classes_start_a_run_only_where_it_asks_for_new_heads(copied, images, refused):
    names = Path(images.parent, "five.txt")
    names.write_text("blue\ngreen\ngrey\nred\nviolet\n")
    start = {"student": {"init_checkpoint": str(Path(copied().workspace, "runs/student/model.safetensors"))}}
    other = {"source": {"classes": str(names)}, "train": {"name": "five", "distillation": "none", "max_steps": 2}}
    run = copied(start, other).model_copy(update={"workspace": str(Path(copied().workspace, "five"))})
    stages.shard(run, silent)
    line = refused(stages.train, run, silent)
    assert "head.weight is (4, 48), expected (5, 48)" in line
    assert line.endswith("or set student.new_head = true if only the classes are others")
    new = run.model_copy(update={"student": run.student.model_copy(update={"new_head": True})})
    assert stages.train(new, silent)["steps"] == 2
    assert weights(new, "five")["head.weight"].shape == (5, 48)


def test_a_run_is_bound_to_the_weights_it_started_from(copied, tmp_path, refused):
    start = tmp_path / "start.safetensors"
    begun = Path(copied().workspace, "runs/student/model.safetensors").read_bytes()
    start.write_bytes(begun)
    tuned = {"student": {"init_checkpoint": str(start)}, "train": {"name": "tuned", "max_steps": 3}}
    stages.train(copied(tuned), silent)
    start.write_bytes(begun[:-4] + b"\0\0\0\0")
    longer = copied(tuned, {"train": {"max_steps": 6}})
    assert "started_from: " in refused(stages.train, longer, silent, code=4)


@pytest.mark.parametrize(("scaled", "rate"), [(True, 0.4 * 16 / 512), (False, 0.4)])
def test_the_learning_rate_is_for_512_views_unless_the_run_file_says_it_is_as_it_is(copied, scaled, rate):
    rates = {"lr": 0.4, "scale_lr": scaled, "warmup_epochs": 0, "distillation": "none", "max_steps": 1, "log_every": 1}
    run = copied({"train": {"name": "rate"} | rates})
    stages.train(run, silent)
    assert metrics(run, "rate")[0]["lr"] == pytest.approx(rate)


CHANGES = {
    "train.lr": {"train": {"lr": 0.02}},
    "train.epochs": {"train": {"epochs": 3}},
    "train.batch_size": {"train": {"batch_size": 8}},
    "train.seed": {"train": {"seed": 1}},
    "train.micro_batch": {"train": {"micro_batch": 8}},
    "train.window": {"train": {"window": 1}},
    "train.alpha": {"train": {"alpha": 0.4}},
    "train.ema_decay": {"train": {"ema_decay": 0.5}},
    "student.drop_path": {"student": {"drop_path": 0.2}},
    "student.drop_rate": {"student": {"drop_rate": 0.2}},
    "train.scale_lr": {"train": {"scale_lr": False}},
    "student.extra.depth": {"student": {"extra": {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}}},
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_setting_against_the_run_exits_4_and_says_what_differs(copied, refused, key):
    before = stored(Path(copied().workspace))
    line = refused(stages.train, copied(CHANGES[key]), silent, code=4)
    assert f"{key}: " in line
    assert line.endswith("use another train.name, or restore the run file")
    assert stored(Path(copied().workspace)) == before


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"workers": 2}}, {"train": {"log_every": 7}}, {"train": {"checkpoint_every": 5}},
        {"train": {"keep_checkpoints": 9}}, {"train": {"tensorboard": True}},
        {"train": {"trackers": ("tensorboard",)}}, {"tracking": {"project": "other"}},
        {"labels": {"workers": 3}}, {"labels": {"passes_per_part": 5}},
        {"evaluate": {"batch_size": 3}}, {"cluster": {"attempts": 7}}, {"shards": {"on_bad_image": "skip"}},
    ],
)  # fmt: skip
def test_a_setting_that_changes_no_weight_may_change(copied, change):
    run = copied(change)
    for stage in (stages.shard, stages.label, stages.train):
        result = stage(run, silent)
        assert result.get("new_parts", 0) == 0
    assert result["resumed_from_step"] == 12


def test_a_run_without_a_checkpoint_is_bound_to_nothing(copied, refused):
    refused(stages.train, copied({"train": {"name": "new", "lr": 1e30, "warmup_lr": 1e30}}), silent)
    assert stages.train(copied({"train": {"name": "new", "max_steps": 2}}), silent)["steps"] == 2
