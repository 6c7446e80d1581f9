"""Checkpoints: a broken one is passed over, old ones go, and what is kept is enough to go on to the bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.commands import run as stages
from stages.storage.store import Store
from stages.train.checkpoint import Checkpoint, newest_checkpoint, newest_lines, save_checkpoint
from tests.support.world import flip_byte, silent, stored


def checkpoint(step: int) -> Checkpoint:
    tensors = {"a": torch.full((3,), step), "b": torch.tensor(step * 0.5, dtype=torch.float64)}
    return Checkpoint(step=step, model=tensors, ema=tensors, state={"step": torch.tensor(step)}, lines=b"{}\n" * step)


def unheard(line: str) -> None:
    raise AssertionError(line)


@pytest.fixture
def run(tmp_path) -> Store:
    """A run's folder with checkpoints after steps 3, 6 and 9, two of which are kept."""
    store = Store(str(tmp_path / "run"))
    for step in (3, 6, 9):
        save_checkpoint(store, checkpoint(step), "me", keep=2)
    return store


def test_the_newest_checkpoint_comes_back_as_it_was(run):
    found = newest_checkpoint(run, "me", unheard)
    assert found.step == 9
    for part in ("model", "ema", "state"):
        one, other = getattr(found, part), getattr(checkpoint(9), part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    assert found.lines == newest_lines(run, "me") == b"{}\n" * 9


def test_where_none_is_there_is_none(tmp_path):
    assert newest_checkpoint(Store(str(tmp_path)), "me", unheard) is None


def test_old_ones_go_with_their_folders(run):
    assert run.folders("checkpoints") == ["step-000000006", "step-000000009"]
    assert sorted(run.files("receipts")) == ["step-000000006.json", "step-000000009.json"]


def test_what_a_killed_process_left_of_a_checkpoint_goes_as_well(run):
    half = run.local_path("checkpoints/step-000000007/.model.safetensors.0.tmp")
    half.parent.mkdir()
    half.write_bytes(b"half")
    run.put("checkpoints/step-000000008/model.safetensors", b"whole, but without a receipt")
    assert newest_checkpoint(run, "me", unheard).step == 9
    save_checkpoint(run, checkpoint(12), "me", keep=2)
    assert run.folders("checkpoints") == ["step-000000009", "step-000000012"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: flip_byte(file, 20), "has other bytes than its receipt says"),
        (lambda file: file.write_bytes(file.read_bytes()[:20]), "has other bytes than its receipt says"),
        (lambda file: file.unlink(), "is missing"),
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "state.safetensors", "metrics.jsonl"])
def test_a_broken_one_is_passed_over_with_a_warning_that_names_it(run, damage, says, file):
    path = f"checkpoints/step-000000009/{file}"
    damage(run.local_path(path))
    heard = []
    assert newest_checkpoint(run, "me", heard.append).step == 6
    assert len(heard) == 1
    assert heard[0].startswith(f"{run}: checkpoint step-000000009 is passed over: {run}/{path}: ")
    assert says in heard[0]


def test_one_with_a_torn_receipt_is_passed_over_with_a_warning_and_goes_with_the_next_save(run):
    receipt = run.local_path("receipts/step-000000009.json")
    receipt.write_bytes(receipt.read_bytes()[:40])
    heard = []
    assert newest_checkpoint(run, "me", heard.append).step == 6
    (line,) = heard
    assert "step-000000009.json: not a receipt" in line and "passed over" in line
    save_checkpoint(run, checkpoint(12), "me", keep=2)
    assert sorted(run.files("receipts")) == ["step-000000006.json", "step-000000012.json"]
    save_checkpoint(run, checkpoint(15), "me", keep=2)
    assert run.folders("checkpoints") == ["step-000000012", "step-000000015"]


def test_training_goes_on_from_the_last_whole_one_to_the_same_bits(copied, whole, capsys):
    run = copied()
    folder = Path(run.workspace, "runs/student")
    for name in ("manifest.json", "model.safetensors", "model_ema.safetensors"):
        (folder / name).unlink()
    flip_byte(folder / "checkpoints/step-000000012/model.safetensors", 5000)
    said = []
    assert stages.train(run, said.append)["resumed_from_step"] == 9
    assert [line for line in said if "checkpoint step-000000012 is passed over" in line]
    assert "step-000000012 is passed over" in capsys.readouterr().err
    truth = stored(Path(whole.workspace, "runs/student"))
    for name in ("model.safetensors", "model_ema.safetensors", "manifest.json"):
        assert (folder / name).read_bytes() == truth[name]
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_without_any_whole_checkpoint_training_begins_again_and_ends_with_the_same_bits(copied, whole):
    run = copied()
    folder = Path(run.workspace, "runs/student")
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    assert stages.train(run, silent)["resumed_from_step"] == 0
    truth = Path(whole.workspace, "runs/student/model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == truth


def test_a_newer_folder_that_another_process_may_be_writing_stays(run):
    run.put("checkpoints/step-000000015/model.safetensors", b"another's, at work")
    save_checkpoint(run, checkpoint(12), "me", keep=2)
    assert run.folders("checkpoints") == ["step-000000009", "step-000000012", "step-000000015"]


@pytest.mark.parametrize("read", ["receipts/step-000000009.json", "checkpoints/step-000000009/state.safetensors"])
def test_one_that_another_command_lets_go_of_while_it_is_read_gives_way_to_the_newer(run, monkeypatch, read):
    whole_read = Store.read
    save_checkpoint(run, checkpoint(9), "me", keep=1)

    def overtaken(store, path):
        if path == read:
            monkeypatch.undo()
            save_checkpoint(run, checkpoint(12), "me", keep=1)
        return whole_read(store, path)

    monkeypatch.setattr(Store, "read", overtaken)
    assert newest_checkpoint(run, "me", unheard).step == 12


def test_a_folder_that_another_command_is_at_keeps_no_save_from_ending(run, monkeypatch):
    def busy(store, folder):
        raise OSError("Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete_folder", busy)
        save_checkpoint(run, checkpoint(12), "me", keep=2)
    save_checkpoint(run, checkpoint(15), "me", keep=2)
    assert run.folders("checkpoints") == ["step-000000012", "step-000000015"]


def test_a_checkpoint_of_an_earlier_version_has_no_lines(run):
    save_checkpoint(run, replace(checkpoint(12), lines=None), "me", keep=2)
    assert newest_checkpoint(run, "me", unheard).lines is None
    assert newest_lines(run, "me") is None  # rather than those of step 9


def test_a_checkpoint_of_another_training_is_refused_by_name_until_it_is_deleted_as_advised(copied, whole, refused):
    other = copied({"train": {"seed": 1, "name": "other"}})
    stages.train(other, silent)
    run, folder = copied(), Path(copied().workspace, "runs/student")
    for name in ("checkpoints/step-000000012", "receipts/step-000000012.json"):
        source = folder.with_name("other") / name
        shutil.copytree(source, folder / name, dirs_exist_ok=True) if source.is_dir() else shutil.copy(
            source, folder / name
        )
    (folder / "manifest.json").unlink()
    line = refused(stages.train, run, silent, code=4)
    receipt = folder / "receipts/step-000000012.json"
    assert "checkpoint step-000000012 is of another training" in line and f"delete {receipt}, or" in line
    receipt.unlink()
    assert stages.train(run, silent)["resumed_from_step"] == 9
    truth = Path(whole.workspace, "runs/student/model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == truth


@pytest.mark.parametrize("change", [{"train": {"lr": 0.5}}, {"train": {"distillation": "none"}}])
def test_another_training_is_not_resumed_where_the_plan_was_deleted(copied, refused, change):
    run = copied(change)
    folder = Path(run.workspace, "runs/student")
    for name in ("plan.json", "manifest.json"):
        (folder / name).unlink()
    assert "plan.json is missing; made_by: " in refused(stages.train, run, silent, code=4)
