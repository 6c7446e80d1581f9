"""What processes do not import, since it would cost each of them time and memory."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from tests.support.world import ROOT, command

HEAVY = ("timm", "ray")


class Imported(Dataset[Any]):
    """The first item of a dataset is built in a data worker; yields which libraries that worker has imported then."""

    def __init__(self, dataset: Any, watched: tuple[str, ...]) -> None:
        self.dataset, self.watched = dataset, watched

    def __getitem__(self, wanted):
        assert self.dataset[wanted]
        return torch.tensor([name in sys.modules for name in self.watched])


@pytest.mark.parametrize("stage", ["train", "label"])
def test_a_data_worker_imports_neither_timm_nor_ray(whole, stage):
    from stages.data.loader import load
    from stages.data.split import Split
    from stages.label.dataset import LabelDataset
    from stages.label.label_set import LabelSpec
    from stages.train.dataset import TrainDataset
    from stages.train.plan import plan_training

    split = Split.open(whole.workspace, "train")
    if stage == "train":
        plan = plan_training(whole, 1)
        data: Any = TrainDataset(split, whole.views, plan.stream(whole), plan.labels, batch=16, rank=0, world=1)
    else:
        data = LabelDataset(split, whole.views, 16)
    own = type(data).__module__
    order = [0] if stage == "train" else data.order(LabelSpec(0, 0, 1), 1)[:1]
    (found,) = load(Imported(data, (*HEAVY, own)), workers=1, order=order, preload=(own,))
    assert found.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("verb", "unwanted"),
    [
        (["--help"], ["torch", "timm", "ray", "pyarrow", "numpy"]),
        (["status"], ["torch", "timm", "ray"]),
        (["compare", "student"], ["torch", "timm", "ray"]),
        (["verify"], ["torch", "timm", "ray"]),
        (["shard"], ["torch", "timm", "ray"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_command_that_needs_no_network_loads_no_torch(copied, tmp_path, verb, unwanted):
    run = None if verb == ["--help"] else copied()
    arguments = command(*verb, config=run, folder=tmp_path)[3:]
    program = (
        "import atexit, sys, cli\n"
        f"atexit.register(lambda: print('LOADED', sorted(sys.modules.keys() & set({unwanted!r}))))\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
