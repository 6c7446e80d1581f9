"""A workspace from Python: the same views, labels, batches and model as the stages have; the notebook runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.workspace import Workspace, open_workspace
from schemas.tables import LABELS
from schemas.toml_text import toml_text
from stages.train.dataset import TrainDataset
from stages.train.plan import plan_training
from tests.support.world import ROOT, decisions

NOTEBOOK = ROOT / "docs" / "workspace.ipynb"
KERNEL = """
import asyncio, json, sys
import ray  # a kernel may have loaded it, and torch, and runs a loop
import matplotlib; matplotlib.use("agg")

async def cells():
    names = {"__name__": "__main__"}
    for source in json.load(sys.stdin):
        exec(compile(source, "<cell>", "exec"), names)
    return names

found = asyncio.run(cells())
print(json.dumps({"views": found["views"].shape, "labels": len(found["labels"]), "step": found["batch"].step}))
"""


@pytest.fixture
def workspace(whole) -> Workspace:
    return Workspace(whole)


def test_a_run_file_is_opened_with_overrides(whole, tmp_path):
    (tmp_path / "deit.toml").write_text(toml_text(whole))
    opened = open_workspace(str(tmp_path / "deit.toml"), ["train.name='teacher'"])
    assert (len(opened), opened.classes, opened.config.train.name) == (61, ("blue", "green", "grey", "red"), "teacher")


def test_views_are_those_of_the_training(workspace, whole):
    plan = plan_training(whole, 1)
    data = TrainDataset(plan.split, whole.views, plan.stream(whole), plan.labels, batch=16, rank=0, world=1)
    unit = data.units(0)[0]
    image = sum(plan.split.rows[: unit.shard]) + unit.row_a
    assert workspace.address(image) == (unit.shard, unit.row_a)
    assert np.array_equal(workspace.view(image, unit.view), data[0].views[0].numpy())
    assert workspace.class_of(image) == int(data[0].classes[0])
    batches = list(workspace.batches(first=10))
    assert [one.step for one in batches] == [10, 11] and torch.equal(batches[0].views, data[10].views)


def test_labels_are_one_table(workspace, whole):
    table = workspace.labels()
    assert table.schema.names == LABELS["hard"].names
    assert len(table) == len(decisions(whole.workspace))
    assert set(workspace.labels([1])["shard"].to_pylist()) == {1}


def test_the_model_has_the_weights_of_its_file(workspace, whole):
    model = workspace.model()
    stored = load_file(Path(whole.workspace, "runs/student/model.safetensors"))
    assert not model.training
    assert all(torch.equal(value, stored[name]) for name, value in model.model.state_dict().items())
    assert workspace.model("teacher", "ema").distilled is False


def test_what_is_not_there_is_refused_in_a_line(workspace, refused):
    assert "images 0 to 60" in refused(workspace.view, 61, 0)
    assert "numbered from 0" in refused(workspace.view, 0, -1)
    assert "shards 0 to 2" in refused(workspace.labels, [3])
    assert "model, ema or best" in refused(workspace.model, weights="newest")
    assert "no such run" in refused(workspace.model, "another")


def test_the_notebook_runs_in_a_kernel_that_has_loaded_ray(whole, tmp_path):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [one for one in notebook["cells"] if one["cell_type"] == "code"]
    assert (notebook["nbformat"], len({one["id"] for one in notebook["cells"]})) == (4, len(notebook["cells"]))
    assert all(one["outputs"] == [] and one["execution_count"] is None for one in cells)
    (tmp_path / "deit.toml").write_text(toml_text(whole))
    before = sorted(Path(whole.workspace).rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps(["".join(one["source"]) for one in cells]),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"views": [4, 32, 32, 3], "labels": 360, "step": 1}
    assert sorted(Path(whole.workspace).rglob("*")) == before
