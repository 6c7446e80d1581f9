"""`--dry-run`: says what a stage would do, refuses what it would refuse, and writes nothing."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.commands import dry_run
from pipeline.commands import dry_work as module
from tests.support.command_line import complaint, typed, written
from tests.support.world import stored

VERBS = ("shard", "label-teacher", "train", "evaluate", "run")


def foreseen(verb, config, folder, *options):
    """The object of a dry run, after which no byte of the workspace is another."""
    before = stored(Path(config.workspace)) if Path(config.workspace).exists() else None
    code, out, err = typed(verb, "--dry-run", "-c", written(config, folder), "--json", *options)
    assert code == 0, err
    after = stored(Path(config.workspace)) if Path(config.workspace).exists() else None
    assert before == after and "nothing was written" in err
    return json.loads(out), err


@pytest.mark.parametrize("verb", VERBS)
def test_of_a_complete_workspace_nothing_is_left(whole, tmp_path, verb):
    found, err = foreseen(verb, whole, tmp_path)
    assert found["dry_run"] and [one["left"] for one in found["work"]] == [0] * len(found["work"])
    assert len(found["work"]) == {"shard": 2, "run": 5}.get(verb, 1) and "are done" in err


def test_run_foresees_all_stages_from_the_source_alone(fresh, images, tmp_path):
    checkpoint = {"teacher": {"checkpoint": "run:teacher"}}
    code, *_ = typed("run", "--dry-run", "-c", written(fresh(checkpoint), tmp_path))
    assert code == 1  # the teacher's run is not there
    plain = {"train": {"distillation": "none"}}
    found, err = foreseen("run", fresh(plain), tmp_path)
    assert [(one["unit"], one["wanted"], one["done"]) for one in found["work"]] == [
        ("shards", 3, 0), ("shards", 1, 0), ("steps", 12, 0),
    ]  # fmt: skip
    pictures = sum(file.stat().st_size for file in (images / "train").rglob("*.*"))
    assert found["work"][0]["bytes"] == pictures
    assert "61 images" in err and "would run student" in err and "estimate` measures it" in err


def test_the_pace_is_that_of_the_hours_that_are_stored(copied, tmp_path):
    found, _ = foreseen("label-teacher", copied({"labels": {"views": 12}}), tmp_path)
    (work,) = found["work"]
    assert work["left"] > 0 and work["seconds"] > 0 and work["bytes"] > 0
    longer, _ = foreseen("train", copied({"train": {"epochs": 8, "reuse_views": True, "name": "another"}}), tmp_path)
    assert (longer["work"][0]["wanted"], longer["work"][0]["seconds"]) == (24, None)


@pytest.mark.parametrize(
    ("verb", "change", "code", "says"),
    [
        ("shard", {"shards": {"samples_per_shard": 30}}, 4, "made differently"),
        ("label-teacher", {"views": {"seed": 1}}, 4, "made differently"),
        ("label-teacher", {"teacher": {"checkpoint": "nowhere.safetensors"}}, 1, "nowhere.safetensors"),
        ("train", {"train": {"name": "student", "lr": 1.0}}, 4, "made differently"),
        ("train", {"train": {"name": "new", "batch_size": 62}}, 1, "lower it"),
        ("train", {"train": {"name": "new", "epochs": 400}}, 1, "raise labels.views"),
        ("train", {"train": {"name": "new"}, "cluster": {"device": "cuda"}}, 1, "no CUDA device"),
        ("train", {"train": {"name": "new", "min_margin": 1.0}, "labels": {"store": "full"}}, 1, "keeps no margins"),
        ("evaluate", {"train": {"name": "none"}}, 1, "no such run"),
    ],
)
def test_what_the_command_would_refuse_is_refused_with_its_exit_code(copied, tmp_path, verb, change, code, says):
    config = copied(change)
    before = stored(Path(config.workspace))
    assert says in complaint(code, verb, "--dry-run", "-c", written(config, tmp_path))
    assert stored(Path(config.workspace)) == before


def test_a_full_disk_is_refused(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda _: 1000)
    code, out, err = typed("shard", "--dry-run", "-c", written(fresh(), tmp_path))
    assert code == 1 and "3 of 3 shards to make" in out and "1,000 are free" in err.splitlines()[-1]


@pytest.mark.parametrize(("wanted", "code"), [(2, 0), (3, 1)])
def test_a_cluster_is_asked_whether_it_has_the_devices(copied, tmp_path, monkeypatch, wanted, code):
    @contextmanager
    def session(cluster):
        assert cluster.address == "head:6379"
        yield SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0})

    monkeypatch.setattr(dry_run, "ray_session", session)
    config = copied({"cluster": {"address": "head:6379", "devices": wanted}, "train": {"batch_size": 12, "name": "n"}})
    found, _, err = typed("train", "--dry-run", "-c", written(config, tmp_path))
    assert found == code, err
    assert ("the cluster at head:6379 has 2 CPUs; lower it, or add nodes" in err) == bool(code)


def test_an_analysis_has_no_dry_run(whole, tmp_path):
    assert typed("evaluate", "--tokens", "--dry-run", "-c", written(whole, tmp_path))[0] == 2
