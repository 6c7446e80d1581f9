"""`config`: where each value comes from, and in what two run files differ."""

import json

import pytest

from schemas.config import RunFile
from schemas.run_file import flat
from tests.support.command_line import complaint, typed


@pytest.fixture
def preset_file(tmp_path):
    """A run file as `init` writes it, in which one value was edited."""
    file = tmp_path / "deit.toml"
    assert typed("init", str(file), "--preset", "deit-s-distilled", "--teacher", "regnety-8gf")[0] == 0
    file.write_text(file.read_text().replace("weight_decay = 0.05", "weight_decay = 0.07"))
    return str(file)


def shown(*arguments: str) -> dict:
    code, out, _ = typed("config", "show", *arguments, "--json")
    assert code == 0
    return {one["key"]: (one["value"], one["from"]) for one in json.loads(out.splitlines()[-1])["keys"]}


def test_every_key_is_shown_with_its_value_and_origin(preset_file):
    keys = shown("-c", preset_file, "--set", "train.epochs=3", "--set", "student.extra={depth = 2}")
    assert list(keys) == list(flat(RunFile()))
    assert keys["train.epochs"] == (3, "--set")
    assert keys["student.extra"] == ({"depth": 2}, "--set")
    assert keys["train.weight_decay"] == (0.07, "file")
    assert keys["student.model"] == ("deit_small_distilled_patch16_224", "preset")
    assert keys["labels.name"] == ("regnety-8gf", "preset")
    assert keys["train.lr"][1] == "default"


def test_without_a_preset_what_is_written_is_of_the_file(tmp_path):
    (tmp_path / "x.toml").write_text("[train]\nepochs = 300\n")
    keys = shown("-c", str(tmp_path / "x.toml"))
    assert (keys["train.epochs"], keys["train.seed"]) == ((300, "file"), (0, "default"))


def test_secrets_are_not_shown(tmp_path):
    (tmp_path / "x.toml").write_text('workspace = "s3://key:hunter2@bucket/x"\n')
    for command in (["show", "-c"], ["diff", str(tmp_path / "x.toml"), "--set", "workspace=elsewhere"]):
        code, out, err = typed("config", *command, str(tmp_path / "x.toml"))
        assert code == 0 and "s3://bucket/x" in out and "hunter2" not in out + err


def test_two_run_files_differ_in_keys(preset_file, tmp_path):
    (tmp_path / "other.toml").write_text("")
    code, out, _ = typed("config", "diff", str(tmp_path / "other.toml"), preset_file, "--json")
    found = {one["key"]: (one["first"], one["second"]) for one in json.loads(out)["differences"]}
    assert code == 0 and found["train.weight_decay"] == (0.05, 0.07)
    assert found.keys() >= {"student.model", "labels.name"} and "train.lr" not in found
    assert "every key has the same value" in typed("config", "diff", preset_file, preset_file)[1]
    assert "unknown key train.epoch" in complaint(
        1, "config", "diff", preset_file, preset_file, "--set", "train.epoch=1"
    )
