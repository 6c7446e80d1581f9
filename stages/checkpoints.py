"""Checkpoints: all that a training needs to go on, committed like any other part.

A checkpoint is three tensor files and a receipt; without its receipt it does not exist, and one whose bytes are not
its receipt's, or whose receipt is torn, is passed over with a warning. Nothing is pickled. No generator state is
stored: randomness is addressed by step.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from safetensors.torch import load, save
from torch import Tensor

from schemas.errors import PipelineError
from schemas.receipts import Made, Receipt
from stages.store import RECEIPTS, Store, broken_files, commit, read_checked

FOLDER = "checkpoints"
_PART = re.compile(r"step-(\d{9})")


@dataclass(frozen=True)
class Checkpoint:
    """A training after `step` steps: named tensors of the model, of its moving average, and of all else."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: dict[str, Tensor]


def save_checkpoint(store: Store, checkpoint: Checkpoint, made_by: str, keep: int) -> None:
    """Commit a checkpoint, then let go of all but the newest `keep`."""
    part = f"step-{checkpoint.step:09d}"
    tensors = {"model": checkpoint.model, "ema": checkpoint.ema, "state": checkpoint.state}
    files = {_path(part, name): to_bytes(table) for name, table in tensors.items()}
    commit(store, part, Made(files=dict(files), rows=checkpoint.step, facts={}), made_by)
    kept = [receipt.part for receipt in _receipts(store, lambda line: None)[-keep:]]
    for part in _parts(store):
        if part not in kept:
            store.delete(_receipt_path(part))  # first: without it the rest counts for nothing
    for part in store.folders(FOLDER):
        if part < kept[0]:  # also what a killed process had begun to write; newer ones may be another's at work
            store.delete_folder(f"{FOLDER}/{part}")


def newest_checkpoint(store: Store, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, or None; a broken one is named and passed over."""
    for receipt in reversed(_receipts(store, warn)):
        if faults := [f"{path} {what}" for path, what in broken_files(store, receipt)]:
            warn(f"{store}: checkpoint {receipt.part} is passed over: {'; '.join(faults)}")
            continue
        files = {file.path: file for file in receipt.files}
        model, ema, state = (
            load(read_checked(store, files[_path(receipt.part, name)])) for name in ("model", "ema", "state")
        )
        return Checkpoint(step=receipt.rows, model=model, ema=ema, state=state)
    return None


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file of named tensors."""
    return bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def _path(part: str, name: str) -> str:
    return f"{FOLDER}/{part}/{name}.safetensors"


def _receipt_path(part: str) -> str:
    return f"{RECEIPTS}/{part}.json"


def _parts(store: Store) -> list[str]:
    """Names of checkpoints that have a receipt of some kind, oldest first."""
    names = (name.removesuffix(".json") for name in store.files(RECEIPTS))
    return sorted(name for name in names if _PART.fullmatch(name))


def _receipts(store: Store, warn: Callable[[str], None]) -> list[Receipt]:
    """Whole receipts of checkpoints, oldest first."""
    found = []
    for path in map(_receipt_path, _parts(store)):
        try:
            found.append(Receipt.from_json(store.read(path), store.name(path)))
        except PipelineError as error:
            warn(f"{error}; until then its checkpoint is passed over")
    return found
