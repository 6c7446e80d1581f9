"""Validation while a model trains: the evaluation's figures, and not one other bit in the training."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.commands import run as stages
from pipeline.commands.export import export
from pipeline.commands.status import status
from schemas.config import TrainConfig
from stages.storage.store import Store
from stages.storage.validations import best_weights, read_validations
from stages.train import loop
from stages.train.plan import plan_training
from stages.train.trainer import Trainer
from tests.support.stored import lines
from tests.support.world import silent

EVERY = {"train": {"name": "seen", "validate_every": 1}}
SAME = ("model.safetensors", "model_ema.safetensors", "manifest.json", "checkpoints/step-000000012/state.safetensors")


def same(workspace: str, truth: str, name: str = "seen") -> bool:
    runs = Path(workspace, "runs", name), Path(truth, "runs/student")
    return all((runs[0] / file).read_bytes() == (runs[1] / file).read_bytes() for file in SAME)


def validated(workspace: str) -> list[dict]:
    return [line for line in lines(workspace, "seen") if "val_images" in line]


def test_a_validated_training_has_the_bits_of_one_that_is_not_and_the_figures_of_evaluate(copied, whole):
    run = copied(EVERY)
    stages.train(run, silent)
    assert same(run.workspace, whole.workspace)
    assert [line["step"] for line in validated(run.workspace)] == [3, 6, 9, 12]
    assert [line for line in lines(run.workspace, "seen") if "loss" in line] == lines(whole.workspace)
    for weights, prefix in (("model", "val_"), ("ema", "val_ema_")):
        found = stages.evaluate(copied(EVERY, {"evaluate": {"weights": weights}}), silent)
        for head in ("class", "distillation", "fused", "fused_softmax"):
            for figure in ("top1", "top5"):
                assert validated(run.workspace)[-1][f"{prefix}{head}_{figure}"] == found[head][figure]


@pytest.mark.parametrize(("alpha", "head", "other"), [(0.0, "class", "distillation"), (1.0, "distillation", "class")])
def test_a_head_that_was_never_trained_is_not_validated(copied, alpha, head, other):
    run = copied(EVERY, {"train": {"max_steps": 3, "alpha": alpha}})
    stages.train(run, silent)
    (found,) = read_validations(Store(f"{run.workspace}/runs/seen"))
    evaluated = stages.evaluate(run, silent)
    assert found.head == head and found.figures[f"val_{head}_top1"] == evaluated[head]["top1"]
    assert evaluated[other] is None and not any(other in name or "fused" in name for name in found.figures)


def test_validating_leaves_generator_modes_buffers_and_switches_as_they_were(copied):
    run = copied(EVERY, {"student": {"model": "test_resnet", "extra": {}, "drop_path": 0.0}})
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=torch.device("cpu"))
    for step in range(3):
        trainer.step(trainer.data[step])
    trainer.save(3)

    def state():
        network = trainer.classifier
        modes = [one.training for one in network.modules()]
        return modes, torch.get_rng_state(), network.state_dict(), trainer.ema.module.state_dict()

    before = state()
    before = before[0], before[1], *({k: v.clone() for k, v in one.items()} for one in before[2:])
    assert trainer.validate(3, lambda share: False) and 3 in trainer.validator.done
    after = state()
    assert before[0] == after[0] and all(before[0])
    assert torch.equal(before[1], after[1])
    for one, other in zip(before[2:], after[2:], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def _validating_at(step, at, news):
    return at == step and news.get("validating", 0) > 0


def test_an_end_in_the_middle_of_a_validation_keeps_the_step_and_the_same_command_validates_first(copied, whole):
    run = copied(EVERY)
    for step in (3, 12):  # of which the last one holds the model back as well
        ends = partial(_validating_at, step)
        result = loop.train(run, rank=0, world=1, device=torch.device("cpu"), report=ends)
        assert result["steps"] == step and step not in [line["step"] for line in validated(run.workspace)]
        assert not Path(run.workspace, "runs/seen/manifest.json").exists()
    loop.train(run, rank=0, world=1, device=torch.device("cpu"), report=lambda at, news: False)
    assert [line["step"] for line in validated(run.workspace)] == [3, 6, 9, 12]
    assert same(run.workspace, whole.workspace)


def test_the_best_checkpoint_is_kept_and_is_what_best_weights_are(copied, tmp_path):
    run = copied(EVERY, {"train": {"keep_checkpoints": 1}, "evaluate": {"weights": "best"}})
    stages.train(run, silent)
    store = Store(f"{run.workspace}/runs/seen")
    best = best_weights(store)
    ranked = [(one.top1(kind), -one.step) for one in read_validations(store) for kind in one.weights]
    assert (best.top1, -best.step) == max(ranked)
    assert {f"step-{best.step:09d}", "step-000000012"} == set(store.folders("checkpoints"))
    found = stages.evaluate(run, silent)
    assert found["fused"]["top1"] == best.top1 and found["model_sha256"] == best.sha256
    export(run, "safetensors", str(tmp_path / "out"), silent)
    assert (tmp_path / "out/model.safetensors").exists()


def test_best_weights_that_are_not_those_that_were_validated_are_refused(copied, refused):
    run = copied(EVERY, {"train": {"max_steps": 3}, "evaluate": {"weights": "best"}})
    stages.train(run, silent)
    path = Path(run.workspace, "runs/seen/validations/step-000000003.json")
    told = json.loads(path.read_text())
    told["weights"] = {kind: [file, "0" * 64] for kind, (file, _) in told["weights"].items()}
    path.write_text(json.dumps(told))
    assert "is not the file that was validated after step 3; delete " in refused(stages.evaluate, run, silent)


def test_best_weights_without_a_validation_are_refused_in_one_line(copied, refused, tmp_path):
    run = copied({"evaluate": {"weights": "best"}})
    assert "has no validation; train with a val split" in refused(stages.evaluate, run, silent)


def test_a_subset_is_seen_in_every_validation_and_the_whole_split_at_the_end(copied):
    run = copied(EVERY, {"train": {"validate_images": 5, "validate_every": 2}})
    stages.train(run, silent)
    found = validated(run.workspace)
    assert [(line["step"], line["val_images"], line.get("val_full_images")) for line in found] == [
        (6, 5, None), (12, 5, 20),
    ]  # fmt: skip
    assert found[-1]["val_full_fused_top1"] == stages.evaluate(run, silent)["fused"]["top1"]


def test_another_cadence_refuses_no_resume(copied, whole):
    stages.train(copied(EVERY, {"train": {"max_steps": 5}}), silent)
    assert stages.train(copied({"train": {"name": "seen"}}), silent)["resumed_from_step"] == 5
    assert same(copied().workspace, whole.workspace)


@pytest.mark.parametrize(("wanted", "epochs", "every"), [("auto", 60, 1), ("auto", 300, 5), (0, 300, 0), (7, 300, 7)])
def test_the_default_cadence_is_every_epoch_of_short_trainings(wanted, epochs, every):
    assert TrainConfig(epochs=epochs, validate_every=wanted).epochs_between_validations == every


def test_without_a_val_split_the_default_says_so_and_a_number_is_refused(copied, refused):
    import shutil

    run = copied({"train": {"name": "seen", "validate_every": "auto", "max_steps": 3}})
    shutil.rmtree(Path(run.workspace, "shards/val"))
    said: list[str] = []
    stages.train(run, said.append)
    assert any(line.startswith("no validation during training: ") for line in said)
    assert "there is no val split" in refused(stages.train, copied_again(run), silent)


def copied_again(run):
    return run.model_copy(update={"train": run.train.model_copy(update={"validate_every": 1})})


def test_hours_are_summed_by_status_and_are_in_no_receipt(copied):
    run = copied(EVERY)
    stages.train(run, silent)
    (found,) = (one for one in status(run.workspace)["stages"] if one["name"] == "seen")
    assert sum(found["device_hours"].values()) > 0
    files = Path(run.workspace, "hours/runs/seen").iterdir()
    told = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [one["part"] for one in told] == [f"step-{step:09d}" for step in (3, 6, 9, 12)]
