"""Checkpoints: everything that a training resumes from, committed like any other part.

A checkpoint is three tensor files, the lines of metrics so far, and a receipt; without its receipt it does not exist,
and one whose bytes are not its receipt's, or whose receipt is damaged, is skipped with a warning. Nothing is pickled.
No generator state is stored: randomness is addressed by step. Another command may train the same run: its commits
have the same bytes, and it deletes only checkpoints that have newer ones.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load
from torch import Tensor

from schemas.errors import IncompleteError, MismatchError, UserError
from schemas.receipts import PartOutput, Receipt
from stages.models.tensors import to_bytes
from stages.storage.commit import RECEIPTS, commit, read_checked, read_receipt, receipt_names
from stages.storage.store import Store

FOLDER = "checkpoints"
_LINES = "metrics.jsonl"
_PART = re.compile(r"step-(\d{9})")


@dataclass(frozen=True)
class Checkpoint:
    """A training after `step` steps: named tensors of the model, of its moving average, and of all else.

    `lines` are those of the metrics, JSON; None in checkpoints of earlier versions.
    """

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    state: dict[str, Tensor]
    lines: bytes | None = None


def save_checkpoint(store: Store, checkpoint: Checkpoint, made_by: str, keep: int, best: int | None = None) -> None:
    """Commit a checkpoint, then let go of all but the newest `keep` and that of step `best`."""
    part = _name(checkpoint.step)
    tensors = {"model": checkpoint.model, "ema": checkpoint.ema, "state": checkpoint.state}
    files: dict[str, bytes | Path] = {_path(part, name): to_bytes(table) for name, table in tensors.items()}
    if checkpoint.lines is not None:
        files[_lines_path(part)] = checkpoint.lines
    commit(store, part, PartOutput(files=files, rows=checkpoint.step, facts={}), made_by)
    drop_checkpoints(store, made_by, keep, best)


def drop_checkpoints(store: Store, made_by: str, keep: int, best: int | None) -> None:
    """Let go of all checkpoints but the newest `keep` and that of step `best`; there has to be one."""
    kept = [receipt.part for receipt in _receipts(store, made_by, lambda line: None)[-keep:]]
    too = None if best is None else _name(best)
    for part in _parts(store):
        if part not in kept and part != too:
            store.delete(_receipt_path(part))  # first: without it the rest counts for nothing
    for part in store.folders(FOLDER):
        # also what a killed process had begun to write; newer ones may be another's at work
        if part < kept[0] and part != too:
            with contextlib.suppress(OSError):  # so may this one; what is left of it goes with a later save
                store.delete_folder(f"{FOLDER}/{part}")


def newest_checkpoint(store: Store, made_by: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint, or None; a damaged one is named and skipped.

    Args:
        store: of the run's folder.
        made_by: fingerprint of what the training is made from.
        warn: takes lines.

    Raises:
        IncompleteError: if the store is away.
        MismatchError: if a checkpoint is of another training, by name.
    """
    for receipt in reversed(_receipts(store, made_by, warn)):
        try:
            data = {file.path: read_checked(store, file) for file in receipt.files}
        except IncompleteError:
            raise
        except UserError as error:
            if not store.exists(_receipt_path(receipt.part)):  # another command has newer ones by now
                return newest_checkpoint(store, made_by, warn)
            warn(f"{store}: checkpoint {receipt.part} is passed over: {error}")
            continue
        model, ema, state = (load(data[_path(receipt.part, name)]) for name in ("model", "ema", "state"))
        return Checkpoint(receipt.rows, model, ema, state, data.get(_lines_path(receipt.part)))
    return None


def newest_lines(store: Store, made_by: str) -> bytes | None:
    """The lines of metrics in the newest checkpoint, or None where there is none or an earlier version made it.

    Raises:
        IncompleteError: if the store is away.
        MismatchError: if a checkpoint is of another training, by name.
    """
    for receipt in reversed(_receipts(store, made_by, lambda line: None)):
        files = [file for file in receipt.files if file.path == _lines_path(receipt.part)]
        if not files:
            return None
        try:
            return read_checked(store, files[0])
        except IncompleteError:
            raise
        except UserError:
            continue  # it is skipped as a unit, or another command has newer ones by now
    return None


def stored_weights(store: Store, step: int) -> dict[str, tuple[str, str]]:
    """The tensor files "model" and "ema" of a checkpoint: path below the run's folder and sha256 of each.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
    """
    receipt = read_receipt(store, _name(step))
    files = {name: receipt.file(f"/{name}.safetensors") for name in ("model", "ema")}
    return {name: (file.path, file.sha256) for name, file in files.items()}


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _path(part: str, name: str) -> str:
    return f"{FOLDER}/{part}/{name}.safetensors"


def _lines_path(part: str) -> str:
    return f"{FOLDER}/{part}/{_LINES}"


def _receipt_path(part: str) -> str:
    return f"{RECEIPTS}/{part}.json"


def _parts(store: Store) -> list[str]:
    """Names of checkpoints that have a receipt of some kind, oldest first."""
    return [name for name in receipt_names(store) if _PART.fullmatch(name)]


def _receipts(store: Store, made_by: str, warn: Callable[[str], None]) -> list[Receipt]:
    """Whole receipts of checkpoints, oldest first."""
    found = []
    for part in _parts(store):
        try:
            receipt = read_receipt(store, part)
        except FileNotFoundError:
            return _receipts(store, made_by, warn)  # another command let go of it meanwhile, for newer ones
        except IncompleteError:
            raise
        except UserError as error:
            warn(f"{error}; until then its checkpoint is passed over")
            continue
        if receipt.made_by != made_by:
            raise MismatchError(
                f"{store}: checkpoint {part} is of another training (made_by {receipt.made_by[:12]}, this one's is "
                f"{made_by[:12]}); delete {store.display_path(_receipt_path(part))}, or use another train.name"
            )
        found.append(receipt)
    return found
