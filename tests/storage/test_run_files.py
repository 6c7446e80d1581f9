"""A run's files are proven against its manifest by whoever reads them, and `train` makes again what is damaged."""

import json
from pathlib import Path

import pytest

from pipeline.commands import run as stages
from pipeline.commands.export import export
from stages.storage.run_files import find_run, open_run, stored_run
from tests.support.world import TEACHER, flip_byte, silent, stored

FIX = "; rerun `deit-pipeline train` with that run's run file, which makes it again"
MODEL, EMA = "model.safetensors", "model_ema.safetensors"


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flip(file: Path) -> None:
    flip_byte(file, file.stat().st_size // 2)


def swap(file: Path) -> None:
    file.write_bytes(file.with_name({MODEL: EMA, EMA: MODEL}[file.name]).read_bytes())


DAMAGES = {
    "flip": flip,
    "zero": zero,
    "truncate": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "swap": swap,
    "delete": Path.unlink,
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", [MODEL, EMA])
def test_a_damaged_model_is_refused_by_every_reader_and_made_again_by_train(
    copied, whole, refused, tmp_path, how, name
):
    run = copied({"evaluate": {"weights": "model" if name == MODEL else "ema"}})
    file = Path(run.workspace, "runs/student", name)
    truth = stored(Path(whole.workspace, "runs/student"))
    DAMAGES[how](file)
    assert find_run(run.workspace, "student").broken() == [name]
    readers = [(stages.evaluate, run, silent), (export, run, "safetensors", str(tmp_path / "out"), silent)]
    if name == MODEL:
        start = {"student": {"init_checkpoint": "run:student"}, "train": {"name": "other"}}
        readers.append((stages.train, copied_run(run, start), silent))
    for reader in readers:
        line = refused(*reader)
        assert str(file) in line and (
            "is missing; " in line or "has other bytes than its run's manifest says; " in line
        )
        assert line.endswith("rerun `deit-pipeline train` with that run's run file, which makes it again")
    said = []
    assert stages.train(run, said.append)["resumed_from_step"] == 12
    assert any(name in line and "made again" in line for line in said)
    made = stored(Path(run.workspace, "runs/student"))
    assert made.keys() == truth.keys() and {key for key in made if made[key] != truth[key]} <= {"run.toml"}  # a path
    stages.evaluate(run, silent)


def copied_run(run, *changes):
    from schemas.run_file import parse_run

    values = run.model_dump(mode="json")
    for layer in changes:
        for table, keys in layer.items():
            values[table] |= keys
    return parse_run(json.loads(json.dumps(values)), "test")


def test_labels_are_not_made_from_a_damaged_teacher(copied, refused):
    run = copied({"labels": {"name": "new"}})
    flip(Path(run.workspace, "runs/teacher", MODEL))
    assert "runs/teacher/model.safetensors: has other bytes" in refused(stages.label, run, silent)
    assert not Path(run.workspace, "labels/new").exists()
    stages.train(copied_run(run, TEACHER), silent)
    stages.label(run, silent)


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, zero, lambda file: file.write_text(file.read_text().replace("= 48", "= 96"))],
    ids=["delete", "zero", "edit"],
)
def test_a_damaged_run_file_is_refused_and_written_again_by_train(copied, whole, refused, damage):
    run = copied()
    file = Path(run.workspace, "runs/student/run.toml")
    damage(file)
    line = refused(stored_run, run, "student")
    assert line.startswith(f"{file}: is ") and line.endswith(FIX)
    stages.train(run, silent)
    assert stored_run(run, "student").student == run.student


def test_an_edited_manifest_of_a_run_is_refused_and_made_again_when_deleted_as_advised(copied, whole, refused):
    run = copied()
    file = Path(run.workspace, "runs/student/manifest.json")
    truth = file.read_bytes()
    fields = json.loads(truth)
    file.write_text(json.dumps(fields | {"loss": 0.1}))
    for reader in (stages.train, stages.evaluate):
        line = refused(reader, run, silent)
        assert line == (
            f"{file}: is damaged (not the bytes that were written); delete it and rerun "
            "`deit-pipeline train` with that run's run file"
        )
    file.unlink()
    stages.train(run, silent)
    assert file.read_bytes() == truth


@pytest.mark.parametrize("name", ["", ".", "..", "../shards", "a/b"])
def test_a_run_is_named_by_a_folder(copied, refused, name):
    assert "must be a folder name" in refused(open_run, copied().workspace, name)
