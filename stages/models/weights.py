"""Where weights come from: a local file, a run of this workspace, timm's pretrained ones; and what names them."""

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from schemas.errors import UserError
from stages.models.state_dict import read_weights
from stages.storage.store import Store


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file of named tensors."""
    return bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


RUN_PREFIX = "run:"
MODEL_FILE, EMA_FILE = "model.safetensors", "model_ema.safetensors"
"""What a run leaves: its model, and the moving average of that."""
_OUTSIDE = re.compile(
    "in12k|inw?21k|in22k|laion|_ig|ssl|wsl|swag|seer|lvd|jft|clip|openai|webli|datacomp|dfn|merged|m3[08]m|yfcc|cc12m|"
    "sa1b|sat493m|bamboo"
)
"""In timm's tags: data sets other than ImageNet-1k, and methods that used them."""


def find_weights(checkpoint: str, workspace: str, key: str, *, file: str = MODEL_FILE) -> dict[str, Tensor]:
    """The tensors of a checkpoint: a file, or `run:NAME`, the model that run trained.

    Args:
        checkpoint: as in the run file.
        workspace: URI below which runs lie.
        key: the run file's key, for messages.
        file: which of the run's files.

    Raises:
        UserError: if there is no such file or run, or it holds anything but tensors.
    """
    with _local_file(checkpoint, workspace, key, file) as path:
        return read_weights(path)


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


def weights_sha256(manifest: dict[str, Any] | None, file: str) -> str | None:
    """Of a run's weights file, as its manifest has it; None if the run is not whole."""
    files = manifest["parts"][0]["files"] if manifest else []
    return next((str(one["sha256"]) for one in files if one["path"] == file), None)


@contextlib.contextmanager
def _local_file(checkpoint: str, workspace: str, key: str, file: str) -> Iterator[Path]:
    if not checkpoint.startswith(RUN_PREFIX):
        yield Path(checkpoint)
        return
    store = Store(workspace).at(f"runs/{checkpoint.removeprefix(RUN_PREFIX)}")
    try:
        data = store.read(file)
    except FileNotFoundError:
        raise UserError(f"{key} = {checkpoint}: {store.name(file)} is missing; train that run first") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(file).name)
        path.write_bytes(data)
        yield path
