"""Files of weights: a table of tensors by name, found by the bytes of the file; nothing but tensors is ever unpickled.

Of a checkpoint with several tables one is taken where it is clear which; `Weights.note` says which it was.
"""

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from schemas.errors import UserError
from stages.models.classifier import short_cause

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".ckpt", ".th", ".pkl")
_RAW, _EMA = ("model", "state_dict", "module"), ("state_dict_ema", "model_ema")
_INDEX = ".safetensors.index.json"
"""Ends the name of the file that says which tensor is in which part of a sharded checkpoint."""
_PART = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.")
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the file; fetch it with `git lfs pull`",
    b"<": "a web page or XML; download the file again",
    b"\x1f\x8b": "compressed (gzip); decompress it first",
    b"\x89HDF": "an HDF5 file of another library; convert it to .safetensors",
}
"""Begin of a file → what it is in place of weights, and the way out."""


class Weights(dict[str, Tensor]):
    """Tensors by name; `note` says which table they were where the file had several."""

    note = ""


def read_weights(path: str | Path) -> Weights:
    """Read a .safetensors file, an index of several, or a .pth, .pth.tar, .pt, .bin, .ckpt, .th or .pkl of tensors.

    Of a checkpoint, the table "model" (the authors') or "state_dict" (timm's) is taken, the moving average only where
    there is no other, and a table of another name where it is the only one; prefixes of DistributedDataParallel and
    torch.compile are removed. The authors' training leaves its arguments beside them as an argparse.Namespace, a bare
    record, which is let through and not looked at.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds more than tensors.
    """
    path = Path(path)
    _refuse_other_files(path)
    if path.name.endswith(_INDEX):
        return Weights(clean_state_dict(_joined(path)))
    with path.open("rb") as file:
        begin = file.read(32)
    for mark, what in _OTHERS.items():
        if begin.startswith(mark):
            raise UserError(f"{path}: is {what}")
    try:
        if begin[8:9] == b"{":
            return Weights(clean_state_dict(load_file(path)))
        trusted = torch.serialization.safe_globals([argparse.Namespace])
        with path.open("rb") as file, trusted, warnings.catch_warnings(action="ignore"):
            found = torch.load(file, map_location="cpu", weights_only=True)  # of a path it would go by the suffix
    except Exception as error:  # damaged bytes fail in many ways
        why = "pickled objects" if isinstance(error, pickle.UnpicklingError) else short_cause(error)
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"({why})" + (f", such as {named[1]}" if named else "")
        raise UserError(f"{path}: damaged, or not of tensors alone {why}; save the state_dict by itself") from error
    found, note = _table(found, path)
    for name, value in found.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantised" if value.is_quantized else "without data" if value.is_meta else "sparse"
            raise UserError(f"{path}: {name} is {kind}; save the state_dict with dense tensors of floating point")
    weights = Weights(clean_state_dict(dict(found)))
    if weights.pop("n_averaged", None) is not None:  # of torch.optim.swa_utils.AveragedModel
        note = "the averaged weights of an AveragedModel"
    weights.note = note
    return weights


def _joined(index: Path) -> dict[str, Tensor]:
    """The tensors of all parts that an index names.

    Raises:
        UserError: if the index or a part is missing or damaged, or a part lacks a tensor that the index has in it.
    """
    joined: dict[str, Tensor] = {}
    try:
        names: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        for part in sorted(set(names.values())):
            joined |= load_file(index.parent / Path(part).name)
        missing = names.keys() - joined.keys()
    except Exception as error:  # damaged bytes fail in many ways
        raise UserError(f"{index}: cannot be read ({short_cause(error)}); download it and its parts again") from None
    if missing:
        raise UserError(f"{index}: no part of it has {min(missing)}; download it and its parts again")
    return {name: joined[name] for name in names}


def _refuse_other_files(path: Path) -> None:
    known = ", ".join(_SUFFIXES)
    if path.name.lower().endswith(".npz"):
        raise UserError(
            f"{path}: not a weights file of torch but of JAX; convert it once with timm: m = timm.create_model(NAME); "
            "m.load_pretrained(FILE); torch.save(m.state_dict(), 'weights.pth')"
        )
    if path.is_dir():
        inside = sorted(
            one.name for one in path.iterdir() if one.name.endswith((*_SUFFIXES, _INDEX)) and not _PART.search(one.name)
        )
        raise UserError(f"{path}: not a weights file but a folder; name a file in it, such as {(inside or [known])[0]}")
    if (path.name.endswith(".index.json") and not path.name.endswith(_INDEX)) or _PART.search(path.name):
        raise UserError(
            f"{path}: not a weights file but one part of several; name the {_INDEX} file beside it; parts that are "
            "pickles join once: w = {}; [w.update(torch.load(one)) for one in FILES]; torch.save(w, 'weights.pth')"
        )
    if not path.name.lower().endswith((*_SUFFIXES, _INDEX)):
        raise UserError(f"{path}: not a weights file; give {known}")
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give the path of one that exists")
    if not path.stat().st_size:
        raise UserError(f"{path}: is empty; copy or download it again")


def _table(found: Any, path: Path) -> tuple[Mapping[str, Tensor], str]:
    """The table of weights in a checkpoint, and what there is to say of the choice.

    Raises:
        UserError: if there is none, or it cannot be told which of several is meant.
    """
    raw: list[str] = []
    average: list[str] = []
    note = ""
    while isinstance(found, Mapping):
        average += [name for name in _EMA if isinstance(found.get(name), Mapping)]
        name = next((name for name in _RAW if isinstance(found.get(name), Mapping)), None)
        if name is None and not average and (name := _only_table(found, path)):
            note = f"{name}, the only table of the file"
        if name is None:
            break
        raw, found = [*raw, name], found[name]
    if average and not raw:
        found, note = found[average[0]], f"{average[0]}, the moving average; the file has no raw weights"
    elif average:
        note = f"{raw[-1]}, the raw weights; the moving average {average[0]} was left out"
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path}: holds no table of tensors; save the model's state_dict by itself")
    if other := next((name for name, value in found.items() if not isinstance(value, Tensor)), None):
        raise UserError(
            f"{path}: holds no table of tensors alone, {other} is {type(found[other]).__name__}; save the model's "
            "state_dict by itself"
        )
    return found, note


def _only_table(found: Mapping[str, Any], path: Path) -> str | None:
    """The name of the only table of tensors in a checkpoint, or None.

    Raises:
        UserError: if there are several.
    """
    tables = [name for name, value in found.items() if isinstance(value, Mapping) and _holds_tensors(value)]
    if len(tables) > 1:
        raise UserError(
            f"{path}: holds the tables {', '.join(map(str, tables[:4]))}, and none is called model or state_dict; save "
            "the one that is meant by itself"
        )
    return tables[0] if tables else None


def _holds_tensors(table: Mapping[str, Any]) -> bool:
    inner = [table[name] for name in (*_RAW, *_EMA) if isinstance(table.get(name), Mapping)]
    return bool(inner) or (bool(table) and all(isinstance(value, Tensor) for value in table.values()))
