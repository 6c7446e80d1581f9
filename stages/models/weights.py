"""Where weights come from: a local file, a run of this workspace, timm's pretrained ones; and what names them."""

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor

from schemas.errors import UserError
from schemas.names import RUN_PREFIX
from stages.models.weight_file import read_weights
from stages.storage.run_files import EMA_FILE as EMA_FILE
from stages.storage.run_files import MODEL_FILE as MODEL_FILE
from stages.storage.run_files import find_run, open_run, run_store

_OUTSIDE = re.compile(
    "in12k|inw?21k|in22k|laion|_ig|ssl|wsl|swag|seer|lvd|jft|clip|openai|webli|datacomp|dfn|merged|m3[08]m|yfcc|cc12m|"
    "sa1b|sat493m|bamboo"
)
"""In timm's tags: data sets other than ImageNet-1k, and methods that used them."""


def find_weights(checkpoint: str, workspace: str, key: str, *, file: str = MODEL_FILE) -> dict[str, Tensor]:
    """The tensors of a checkpoint: a file, or `run:NAME`, the model that run trained.

    Args:
        checkpoint: as in the run file.
        workspace: URI of the folder with the runs.
        key: the run file's key, for messages.
        file: which of the run's files.

    Raises:
        UserError: if there is no such file or run, or it holds anything but tensors.
    """
    with _local_file(checkpoint, workspace, key, file) as path:
        return read_weights(path)


def untrained_heads(checkpoint: str, workspace: str) -> tuple[str, ...]:
    """Heads of a distilled model that were never trained, where its checkpoint is `run:NAME`; of a file none is known.

    Raises:
        UserError: if there is no such run.
    """
    if not checkpoint.startswith(RUN_PREFIX):
        return ()
    return open_run(workspace, checkpoint.removeprefix(RUN_PREFIX)).trained_with().train.untrained_heads


def pretrained_weights(model: str, key: str = "teacher.checkpoint") -> dict[str, Tensor]:
    """Timm's pretrained weights of a model with its tag; `key` names the run file's for a local file, for messages.

    Raises:
        UserError: if timm has none or they cannot be fetched.
    """
    try:
        weights: dict[str, Tensor] = timm.create_model(model, pretrained=True).state_dict()
    except Exception as error:  # hub clients raise what they like
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{model}: its pretrained weights cannot be had ({cause}); give a local file as {key}"
        ) from None
    return weights


def outside_data(model: str) -> str:
    """The tag that a plain model name stands for, if its weights saw more than ImageNet-1k; else "".

    A name with its tag has been chosen; of a plain one timm chooses, and with the best accuracy in mind.
    """
    if "." in model or not timm.is_model(model):
        return ""
    about = timm.get_pretrained_cfg(model, allow_unregistered=True)
    tag: str = (about and about.tag) or ""
    return tag if _OUTSIDE.search(tag) else ""


def weights_digest(weights: dict[str, Tensor]) -> str:
    """Hex sha256 over names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _local_file(checkpoint: str, workspace: str, key: str, file: str) -> Iterator[Path]:
    if not checkpoint.startswith(RUN_PREFIX):
        yield Path(checkpoint)
        return
    run = find_run(workspace, checkpoint.removeprefix(RUN_PREFIX), f"{key} = {checkpoint}")
    if run is None:
        store = run_store(workspace, checkpoint.removeprefix(RUN_PREFIX))
        raise UserError(
            f"{key} = {checkpoint}: {store} is not trained to its end; train that run first (`deit-pipeline train`)"
        )
    data = run.read(file)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(file).name)
        path.write_bytes(data)
        yield path
