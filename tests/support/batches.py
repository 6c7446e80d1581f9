"""Training batches of the tiny world."""

import torch

from stages.data.split import Split
from stages.label.label_set import LabelSet
from stages.replay.order import Stream
from stages.train.dataset import Batch, TrainDataset


def steps(run, rank: int = 0, world: int = 1, labelled: bool = True, spread: bool = False) -> TrainDataset:
    split = Split.open(run.workspace, "train")
    labels = LabelSet.open(run, split) if labelled else None
    stream = Stream(split.rows, repeats=2, window=2, recipe_seed=run.views.seed, seed=run.train.seed, passes=3)
    return TrainDataset(split, run.views, stream, labels, batch=16, rank=rank, world=world, spread=spread)


def same(first: Batch, second: Batch) -> bool:
    one, other = ((b.step, b.views, b.classes, *b.mix, b.decisions) for b in (first, second))
    return one[0] == other[0] and all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))
