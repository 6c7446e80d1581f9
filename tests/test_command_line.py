"""How the command line helps: nearest words, tracebacks, objects on failure, advice that names the run file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import run
from schemas.run_file import load_run_file, parse_run
from tests.support.command_line import complaint, typed
from tests.support.world import ROOT


@pytest.fixture
def empty(tmp_path) -> str:
    """A run file of a workspace that holds nothing."""
    (tmp_path / "my run.toml").write_text(f'workspace = "{tmp_path}/ws"\n')
    return str(tmp_path / "my run.toml")


@pytest.mark.parametrize(
    ("arguments", "near"),
    [(["trian"], "'train'"), (["config", "shwo"], "'show'"), (["train", "--confg", "x"], "--config")],
)
def test_the_nearest_verb_or_option_is_named(arguments, near):
    code, out, err = typed(*arguments)
    assert (code, out) == (2, "") and near in err
    code, out, _ = typed(*arguments, "--json")
    failure = json.loads(out)
    assert (code, failure["exit_code"]) == (2, 2) and near in failure["error"]


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("train.epoch=3", "(did you mean train.epochs?)"),
        ("trian.epochs=3", "(did you mean train?)"),
        ("train.img_size=3", "(did you mean student.img_size?)"),
    ],
)
def test_the_nearest_key_is_named(empty, override, near):
    assert complaint(1, "status", "-c", empty, "--set", override).endswith(near)


def test_the_nearest_preset_teacher_and_format_are_named(tmp_path, empty):
    file = str(tmp_path / "x.toml")
    assert "(did you mean deit-s-distilled?)" in complaint(1, "init", file, "--preset", "deit-s-destilled")
    assert "(did you mean regnety-8gf?)" in complaint(1, "init", file, "--teacher", "regnety-8g")
    assert "(did you mean onnx?)" in complaint(1, "export", "--format", "onx", "--out", file, "-c", empty)


def test_what_a_library_prints_is_not_among_an_object(empty, monkeypatch):
    from pipeline.commands import status

    def noisy(workspace):
        print("* a library says hello")
        return {"workspace": workspace, "stages": []}

    monkeypatch.setattr(status, "status", noisy)
    code, out, err = typed("status", "-c", empty, "--json")
    assert code == 0 and json.loads(out)["stages"] == [] and "a library says hello" in err
    assert "a library says hello" in typed("status", "-c", empty)[1]


def test_what_cannot_be_written_is_refused_before_anything_is_loaded(empty):
    program = "import sys, cli\ntry:\n    cli.main()\nfinally:\n    assert 'torch' not in sys.modules, 'torch'"
    for arguments in (
        ["export", "--format", "tflite", "--out", "x"],
        ["inspect", "views", "--sample", "0", "--out", "x.pdf"],
        ["inspect", "labels", "--out", "x.pdf"],
    ):
        words = [sys.executable, "-c", program, *arguments, "-c", empty]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("order", [("--debug", "verify"), ("verify", "--debug")])
def test_debug_shows_the_traceback_before_the_line(empty, order):
    code, _, err = typed(*order, "-c", empty)
    assert code == 1 and err.startswith("Traceback") and err.splitlines()[-1].startswith("deit-pipeline: ")
    assert "Traceback" not in typed("verify", "-c", empty)[2]


def test_advice_names_the_run_file_in_use(empty):
    line = complaint(1, "verify", "-c", empty, "--json")
    assert f"run `deit-pipeline shard -c '{empty}'` first" in line


def test_completion_is_offered():
    assert "--install-completion" in typed("--help")[1]


@pytest.mark.parametrize("val", ["", "images/val"])
def test_run_without_val_says_that_evaluation_is_skipped(monkeypatch, val):
    for stage in ("sharded", "train", "evaluate"):
        monkeypatch.setattr(run, stage, lambda config, say, stage=stage: {"stage": stage})
    said: list[str] = []
    config = parse_run({"source": {"val": val}, "train": {"distillation": "none"}}, "test")
    stages = [one["stage"] for one in run.everything(config, said.append)["stages"]]
    assert stages == ["sharded", "train"] + (["evaluate"] if val else [])
    assert [line.startswith("evaluation is skipped: source.val is not set") for line in said] == [True] * (not val)


def test_a_relative_workspace_is_beside_the_run_file(tmp_path, monkeypatch):
    (tmp_path / "project/deit").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    file, said = tmp_path / "project/deit.toml", list[str]()
    file.write_text('workspace = "ws"\n')
    monkeypatch.chdir(tmp_path / "here")
    beside = str(tmp_path / "project/ws")
    assert load_run_file("../project/deit.toml", [], said.append).workspace == beside
    assert said.pop() == f"workspace {beside}"
    assert load_run_file(str(file), ["workspace=ws"], said.append).workspace == "ws" and not said
    Path("ws").mkdir()
    assert load_run_file(str(file), [], said.append).workspace == "ws"
    assert said.pop().startswith(f"workspace {tmp_path}/here/ws: in the current folder")
    Path(beside).mkdir()
    assert load_run_file(str(file), [], said.append).workspace == beside
    assert said.pop() == f"workspace {beside}, not {tmp_path}/here/ws, which is there too"
    monkeypatch.chdir(tmp_path / "project")
    assert load_run_file("deit.toml", [], said.append).workspace == "ws" and not said
