"""Trackers: every line once whatever is killed, and no training that fails or waits for them."""

import json
import sys
import threading
from pathlib import Path

import pytest

from pipeline.commands import run as stages
from stages.storage.store import Store
from stages.trackers import about, sender, tracker
from stages.trackers.about import About, about_run
from stages.trackers.sender import Senders
from tests.support.stored import lines
from tests.support.world import ROOT, run_file, silent, stored

EVERY = {"train": {"name": "told", "validate_every": 1, "trackers": ("wandb",)}}


class Recorder:
    """A tracker in memory: what each of its runs was sent, row by row; it knows how many rows a run has."""

    def __init__(self):
        self.rows: dict[str, list[dict]] = {}
        self.about: list[About] = []
        self.done: list[bool] = []
        self.fails: list[Exception] = []
        self.dies = False
        self.hangs: threading.Event | None = None

    def connect(self, name, told, config, store):
        self.about.append(told)
        recorder, rows = self, self.rows.setdefault(told.id, [])

        class Run:
            def send(self, lines, sent):
                if recorder.hangs:
                    recorder.hangs.wait(60)
                if recorder.fails:
                    raise recorder.fails.pop()
                rows.extend(lines[len(rows) :])
                if recorder.dies:
                    raise SystemExit("killed before it wrote down what it sent")

            def close(self, *, done):
                recorder.done.append(done)

        return Run()


@pytest.fixture
def recorder(monkeypatch):
    found = Recorder()
    monkeypatch.setattr(sender, "connect", found.connect)
    monkeypatch.setattr(tracker, "_is_installed", lambda name: True)
    return found


def until(step):
    return {"train": EVERY["train"] | {"max_steps": step}}


def test_a_run_resumed_many_times_is_one_run_of_the_tracker_with_each_line_once(copied, recorder, whole):
    for step in (2, 3, 5, 6, 9, 11):
        recorder.dies = step % 2 == 0  # every other time the mark is not written
        stages.train(copied(until(step)), silent)
    recorder.dies = False
    run = copied(EVERY)
    stages.train(run, silent)
    (rows,) = recorder.rows.values()
    told = lines(run.workspace, "told")
    assert [(row["step"], "loss" in row) for row in rows] == [(line["step"], "loss" in line) for line in told]
    assert [row["loss"] for row in rows if "loss" in row] == [line["loss"] for line in told if "loss" in line]
    assert recorder.done[-1] is True
    files = ("model.safetensors", "model_ema.safetensors", "manifest.json")
    runs = Path(run.workspace, "runs/told"), Path(whole.workspace, "runs/student")
    assert all((runs[0] / file).read_bytes() == (runs[1] / file).read_bytes() for file in files)


def test_a_tracker_is_told_name_configuration_label_set_and_git_state(copied, recorder, monkeypatch):
    monkeypatch.setattr(about, "_git", lambda *arguments: {"rev-parse": "c0ffee"}.get(arguments[0], ""))
    run = copied(until(2), {"source": {"val": "s3://me:secret@bucket/val"}}, {"train": {"validate_every": 0}})
    stages.train(run, silent)
    (told,) = recorder.about
    labels = json.loads(Path(run.workspace, "labels/teacher/manifest.json").read_text())
    assert told.name == "told" and told.config["train.lr"] == 0.01 and told.config["source.val"] == "s3://bucket/val"
    assert told.identity["label_set_made_by"] == labels["made_by"] and told.identity["label_set"] == "teacher"
    assert (told.identity["git_commit"], told.identity["git_changed"]) == ("c0ffee", "false")


def test_a_tracker_that_fails_ends_no_training_and_gets_its_lines_when_the_command_is_typed_again(
    copied, recorder, capsys
):
    recorder.fails = [OSError("no server at https://me:secret@host/x")] * 99
    run = copied(EVERY)
    assert stages.train(run, silent)["steps"] == 12
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: train.trackers: wandb: no server at https://host/x; the training continues")
    assert recorder.rows and not any(recorder.rows.values())
    recorder.fails = []
    stages.train(run, silent)
    (rows,) = recorder.rows.values()
    assert [row["step"] for row in rows] == [line["step"] for line in lines(run.workspace, "told")]
    opened = len(recorder.about)
    stages.train(run, silent)
    assert len(recorder.about) == opened  # nothing is missing: the tracker is left alone


def test_the_end_waits_a_bounded_time_for_a_tracker_that_hangs(recorder, tmp_path, capsys):
    recorder.hangs = threading.Event()
    config = run_file(tmp_path, tmp_path, EVERY)
    store = Store(str(tmp_path)).child("runs/told")
    hung = Senders(("wandb",), config, store, lambda: about_run(config, store, "me", {}), seconds=0.1)
    hung.offer([{"step": 1, "loss": 1.0}])
    hung.close(done=True)
    assert "wandb: does not answer in time" in capsys.readouterr().err
    recorder.hangs.set()


def test_another_training_of_the_same_name_is_another_run_of_the_tracker(tmp_path):
    config, store = run_file(tmp_path, tmp_path), Store(str(tmp_path)).child("runs/told")
    ids = [about_run(config, store, made_by, {}).id for made_by in ("one", "one", "other")]
    assert ids[0] == ids[1] != ids[2]


def test_trackers_are_no_part_of_a_run_and_without_any_nothing_is_written(copied, recorder):
    stages.train(copied(until(3)), silent)
    plain = copied({"train": {"name": "plain", "validate_every": 1, "max_steps": 3}})
    stages.train(plain, silent)
    told, quiet = (set(stored(Path(plain.workspace, "runs", name))) for name in ("told", "plain"))
    assert told - quiet == {"trackers/run.json", "trackers/wandb.json"}
    made_by = [json.loads(Path(plain.workspace, "runs", name, "manifest.json").read_text())["made_by"]
               for name in ("told", "plain")]  # fmt: skip
    assert made_by[0] == made_by[1]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "tensorboard"])
def test_a_library_that_is_missing_is_refused_before_anything_starts(copied, refused, monkeypatch, name):
    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: None)
    line = refused(stages.train, copied({"train": {"name": "told", "trackers": (name,)}}), silent)
    assert line.startswith(f"train.trackers: \"{name}\" needs {name}; pip install 'deit-pipeline[{name}]'")
    assert not Path(copied().workspace, "runs/told").exists()


def test_a_folder_of_a_librarys_name_is_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "nowhere_to_be_found").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not tracker._is_installed("nowhere_to_be_found") and tracker._is_installed("json")


def test_no_library_of_a_tracker_is_imported_where_it_is_not_chosen():
    import subprocess

    code = "import pipeline.commands.train, sys; print({'wandb', 'mlflow', 'trackio', 'tensorboard'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"
