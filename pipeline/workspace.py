"""A workspace from Python, as a notebook uses it.

    from pipeline.workspace import open_workspace

    workspace = open_workspace("deit.toml")
    model = workspace.model()

Nothing here writes into the workspace. What it returns are the classes that the stages use themselves, so that their
docstrings hold. Commands are functions too: `pipeline.commands.train.train(workspace.config, print)`.

Legend: B views of a batch, S side of a view.
"""

import io
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.manifests import LabelManifest
from schemas.run_file import load_run_file
from stages.data.loader import load
from stages.data.split import Split
from stages.data.views import ViewRenderer
from stages.label.label_set import LabelSet, LabelSpec
from stages.models.classifier import Classifier
from stages.models.student import trained_student
from stages.storage.commit import read_checked
from stages.storage.manifest import open_manifest
from stages.storage.run_files import open_run, refuse_other_classes
from stages.train.dataset import Batch, TrainDataset
from stages.train.plan import plan_training


class Workspace:
    """What the stages of a run file have stored; read where it is asked for.

    Args:
        config: the run file.

    Attributes:
        config: the same.
    """

    def __init__(self, config: RunFile) -> None:
        self.config = config

    @cached_property
    def split(self) -> Split:
        """The train split.

        Raises:
            UserError: if it is not sharded yet.
        """
        return Split.open(self.config.workspace, "train", self.config.cache)

    @cached_property
    def _renderer(self) -> ViewRenderer:
        return ViewRenderer(self.split, self.config.views)

    def __len__(self) -> int:
        """Images of the train split."""
        return len(self.split)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.split.classes

    def address(self, image: int) -> tuple[int, int]:
        """Shard and row of an image, which is numbered from 0 over the train split.

        Raises:
            UserError: if there is no such image.
        """
        if not 0 <= image < len(self):
            raise UserError(f"image {image}: the train split has images 0 to {len(self) - 1}")
        return self.split.address(image)

    def class_of(self, image: int) -> int:
        """The class index of an image; raises UserError if there is no such image."""
        shard, row = self.address(image)
        return int(self.split.index(shard).classes[row])

    def view(self, image: int, view: int) -> np.ndarray:
        """A view as teacher and student see it before it is mixed, uint8 [S, S, 3].

        Raises:
            UserError: if there is no such image or view, or its bytes are not those that were sharded.
        """
        if not 0 <= view < 2**16:
            raise UserError(f"view {view}: views are numbered from 0 to {2**16 - 1}")
        side = self.config.views.image_size
        out = np.empty((side, side, 3), np.uint8)
        self._renderer.view(*self.address(image), view, out)
        return out

    def labels(self, shards: Sequence[int] | None = None) -> pa.Table:
        """The teacher's labels, a row a view with the columns of `schemas.tables.LABELS`.

        Args:
            shards: numbers of the shards whose labels are read; None = all.

        Raises:
            UserError: if the label set is incomplete or damaged, or there is no such shard.
            MismatchError: if it is of another split, recipe or teacher.
        """
        store = LabelSet.open(self.config, self.split).store
        found = open_manifest(store, LabelManifest)
        assert found is not None  # as it has been opened
        if unknown := [shard for shard in shards or () if not 0 <= shard < len(self.split.rows)]:
            raise UserError(f"shard {unknown[0]}: the train split has shards 0 to {len(self.split.rows) - 1}")
        parts = [one for one in found.parts if shards is None or LabelSpec.parse(one.part).shard in shards]
        tables = [pq.read_table(io.BytesIO(read_checked(store, file))) for part in parts for file in part.files]
        return pa.concat_tables(tables)

    def batches(self, first: int = 0, workers: int = 0) -> Iterator[Batch]:
        """The batches that the run file's training sees, from step `first` to its last; on the CPU, uint8 [B, S, S, 3].

        Args:
            first: step to begin with.
            workers: processes that build batches ahead; 0 = this process builds them.

        Raises:
            UserError: if shards or labels are missing or too few, or stored bytes are wrong.
            MismatchError: if the labels are of another split, recipe or teacher.
        """
        untold = self.config.train.model_copy(update={"trackers": (), "tensorboard": False})
        plan = plan_training(self.config.model_copy(update={"train": untold}), 1)
        data = plan.dataset(self.config, rank=0, world=1)
        return load(data, workers=workers, order=range(first, plan.steps), preload=(TrainDataset.__module__,))

    def model(self, run: str = "", weights: str = "model") -> Classifier:
        """A trained student on the CPU, in eval mode; it takes normalised images and returns the logits of its heads.

        Args:
            run: its name; "" = the run file's `train.name`.
            weights: as `evaluate.weights`: "model", "ema" or "best".

        Raises:
            UserError: if there is no such run or file, or it is not trained to its end.
            MismatchError: if it was trained for other classes.
        """
        if weights not in ("model", "ema", "best"):
            raise UserError(f"weights = {weights!r}: must be model, ema or best")
        finished = open_run(self.config.workspace, run or self.config.train.name)
        refuse_other_classes(finished, self.classes)
        file = finished.weights(weights)
        return trained_student(finished.config(self.config), self.split, file.path).eval()


def open_workspace(run_file: str = "deit.toml", overrides: Sequence[str] = ()) -> Workspace:
    """Open the workspace of a run file.

    Args:
        run_file: its path.
        overrides: as behind `--set`, such as `["train.name='student'"]`.

    Raises:
        UserError: if there is no such run file, or a key is wrong, in one line that says what is allowed.
    """
    return Workspace(load_run_file(run_file, list(overrides)))
