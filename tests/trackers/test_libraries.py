"""Each tracker through its own library, offline: what a killed and resumed run leaves there."""

import json
from pathlib import Path

import pytest

from stages.storage.store import Store
from stages.trackers import tracker
from stages.trackers.about import about_run
from stages.trackers.tracker import connect
from tests.support.world import run_file

LINES = [
    {"step": 2, "epoch": 0, "loss": 2.0, "lr": 0.1}, {"step": 3, "epoch": 0, "val_class_top1": 0.25},
    {"step": 4, "epoch": 1, "loss": 1.5, "lr": 0.2}, {"step": 6, "epoch": 1, "loss": 1.0, "lr": 0.1},
    {"step": 6, "epoch": 1, "val_class_top1": 0.5},
]  # fmt: skip


@pytest.fixture
def sent(tmp_path):
    """Send the lines as three processes would: one is killed before it writes down what it sent."""

    def send(name: str, *changes: dict):
        config = run_file(tmp_path / "workspace", tmp_path, {"tracking": {"offline": True}}, *changes)
        store = Store(config.workspace).child("runs/student")
        told = about_run(config, store, "me", {"label_set": "teacher"})
        for until, known in ((2, 0), (4, 2), (5, 4)):
            run = connect(name, told, config, store)
            run.send(LINES[:until], known)
            run.close(done=until == 5)
        run = connect(name, told, config, store)
        run.send(LINES, 0 if name != "wandb" else 5)  # the mark was lost
        run.close(done=True)
        return told, Path(config.workspace)

    return send


def points(key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in LINES if key in line]


def test_tensorboard_has_each_number_once_and_the_run_file(sent):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs deit-pipeline[tensorboard]"
    )
    told, workspace = sent("tensorboard")
    (file,) = (workspace / "runs/student/tensorboard").iterdir()
    shown = accumulator.EventAccumulator(str(file)).Reload()
    assert set(shown.Tags()["scalars"]) == {"loss", "lr", "epoch", "val_class_top1"}
    for key in ("loss", "lr", "val_class_top1"):
        assert [(one.step, pytest.approx(one.value)) for one in shown.Scalars(key)] == points(key)
    texts = [shown.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in shown.Tags()["tensors"]]
    assert any('"train.lr": 0.01' in text for text in texts) and any('"label_set": "teacher"' in text for text in texts)
    assert any(told.id in text for text in texts)


def test_the_older_key_writes_the_same_event_file(copied):
    pytest.importorskip("tensorboard", reason="needs deit-pipeline[tensorboard]")
    from pipeline.commands import run as stages
    from tests.support.world import silent

    run = copied({"train": {"name": "drawn", "tensorboard": True, "max_steps": 3}})
    stages.train(run, silent)
    assert [file.name for file in Path(run.workspace, "runs/drawn/tensorboard").iterdir()] == ["events.out.tfevents.0"]


def test_a_missing_tensorboard_names_the_older_key(copied, refused, monkeypatch):
    from pipeline.commands import run as stages
    from tests.support.world import silent

    monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda name: None)
    line = refused(stages.train, copied({"train": {"name": "drawn", "tensorboard": True}}), silent)
    assert line.startswith("train.tensorboard = true: needs tensorboard; pip install 'deit-pipeline[tensorboard]'")


def test_mlflow_has_each_number_once_in_one_run(sent):
    mlflow = pytest.importorskip("mlflow", reason="needs deit-pipeline[mlflow]")
    _, workspace = sent("mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{workspace.resolve()}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("deit-pipeline").experiment_id])
    for key in ("loss", "lr", "val_class_top1", "epoch"):
        assert len(client.get_metric_history(run.info.run_id, key)) == len({step for step, _ in points(key)})
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")] == points("loss")
    assert run.data.params["train.lr"] == "0.01" and run.data.tags["deit_pipeline.label_set"] == "teacher"
    assert run.info.status == "FINISHED" and run.info.run_name == "student"


def test_trackio_has_each_row_once_in_one_run(sent, tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="needs deit-pipeline[trackio]")
    from trackio.sqlite_storage import SQLiteStorage

    project = f"test-{tmp_path.name}"
    told, _ = sent("trackio", {"tracking": {"project": project}})
    try:
        rows = SQLiteStorage.get_logs(project, f"student-{told.id[:8]}")
        assert [(row["step"], row.get("loss"), row.get("val_class_top1")) for row in rows] == [
            (line["step"], line.get("loss"), line.get("val_class_top1")) for line in LINES
        ]
    finally:
        SQLiteStorage.get_project_db_path(project).unlink()


def wandb_records(data: bytes):
    """The records of a W&B file: a header of 7 bytes, then LevelDB's log, blocks of 32 KiB of (crc, length, type)."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last piece
            yield record
            record = b""


def test_wandb_has_each_row_once_in_files_of_one_run(sent):
    pytest.importorskip("wandb", reason="needs deit-pipeline[wandb]")
    from wandb.proto.wandb_internal_pb2 import Record

    told, workspace = sent("wandb")
    rows = []
    for file in sorted((workspace / "runs/student/wandb").glob("offline-run-*/*.wandb")):
        assert file.name == f"run-{told.id}.wandb"
        for record in map(Record.FromString, wandb_records(file.read_bytes())):
            if record.HasField("history"):
                items = {one.key or ".".join(one.nested_key): one.value_json for one in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items()})
    assert [(row["_step"], row["step"], row.get("loss"), row.get("val_class_top1")) for row in rows] == [
        (at, line["step"], line.get("loss"), line.get("val_class_top1")) for at, line in enumerate(LINES)
    ]
