"""Weights as named tensors: reading files of them, and loading them into a classifier.

Legend: N = tokens, D = width. Rejected: timm's loader, which resamples positional embeddings with antialiasing where
the authors did not.
"""

import argparse
import contextlib
import inspect
import math
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from schemas.errors import UserError
from stages.models.classifier import Classifier, short_cause

_TORCH_FILES = (".pth", ".pt", ".bin", ".pth.tar")
_RAW, _EMA = ("model", "state_dict", "module"), ("state_dict_ema", "model_ema")
_FILTERS = (
    "checkpoint_filter_fn",
    "checkpoint_filter_fn_classifier",
    "pretrained_filter_fn",
    "_filter_fn",
    "_filter_torchvision_pretrained",
)
"""What timm's modules call the function that renames an old checkpoint's tensors."""


class Weights(dict[str, Tensor]):
    """Tensors by name; `note` says which table they were where the file had a moving average."""

    note = ""


def read_weights(path: str | Path) -> Weights:
    """Read a .safetensors file, or a .pth, .pth.tar, .pt or .bin file of tensors; nothing else is ever unpickled.

    Of a checkpoint, the table "model" (the authors') or "state_dict" (timm's) is taken, the moving average only where
    there is no other; prefixes of DistributedDataParallel and torch.compile are removed. The authors' training leaves
    its arguments beside them as an argparse.Namespace, a bare record, which is let through and not looked at.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds more than tensors.
    """
    path = Path(path)
    if not path.name.endswith((".safetensors", *_TORCH_FILES)):
        raise UserError(f"{path}: not a weights file; give .safetensors, {', '.join(_TORCH_FILES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give the path of one that exists")
    try:
        if path.suffix == ".safetensors":
            return Weights(clean_state_dict(load_file(path)))
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail in many ways
        why = "pickled objects" if isinstance(error, pickle.UnpicklingError) else short_cause(error)
        raise UserError(f"{path}: damaged, or not of tensors alone ({why}); save the state_dict by itself") from error
    found, note = _table(found)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: holds no table of tensors; save the model's state_dict by itself")
    for name, value in found.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantised" if value.is_quantized else "without data" if value.is_meta else "sparse"
            raise UserError(f"{path}: {name} is {kind}; save the state_dict with dense tensors of floating point")
    weights = Weights(clean_state_dict(dict(found)))
    weights.note = note
    return weights


def _table(found: Any) -> tuple[Any, str]:
    """The table of weights in a checkpoint, and what there is to say of the choice."""
    raw: list[str] = []
    average: list[str] = []
    while isinstance(found, Mapping):
        average += [name for name in _EMA if isinstance(found.get(name), Mapping)]
        name = next((name for name in _RAW if isinstance(found.get(name), Mapping)), None)
        if name is None:
            break
        raw, found = [*raw, name], found[name]
    if average and not raw:
        return found[average[0]], f"{average[0]}, the moving average; the file has no raw weights"
    return found, f"{raw[-1]}, the raw weights; the moving average {average[0]} was left out" if average else ""


def load_weights(classifier: Classifier, weights: dict[str, Tensor], *, source: str, new_head: bool = False) -> None:
    """Load weights that fit exactly, once timm's own filter of the architecture has renamed what is old.

    Positional embeddings of another resolution are resampled; counts of batches that a file lacks begin at 0; buffers
    that the network computes are left out of the comparison.

    Args:
        classifier: what `build` made.
        weights: tensors under timm's names.
        source: where they came from, for the error.
        new_head: keep the heads' initial weights, whatever `weights` has for them (transfer, paper's Table 7).

    Raises:
        UserError: naming the first tensor that does not fit, and how many more do not.
    """
    model = classifier.model
    expected: dict[str, Tensor] = model.state_dict()
    note = getattr(weights, "note", "")
    weights = dict(weights)
    positions = weights.get("pos_embed")
    if positions is not None and positions.ndim == 3 and isinstance(model, VisionTransformer):
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        weights["pos_embed"] = resample_positions(positions, grid=model.patch_embed.grid_size, prefix=prefix)
    if _misfits(weights, expected):
        weights = _filtered(model, weights, expected)
    if new_head:
        _keep_new_heads(model, weights, expected)
    if problems := _misfits(weights, expected):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"{source} does not fit {model.pretrained_cfg['architecture']}: {problems[0]}{more}; "
            "name the model and the classes that these weights were trained for"
        )
    model.load_state_dict(weights)
    classifier.weights_note = f"{source}: took {note}" if note else ""


def _filtered(model: Any, weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as timm's own filter of the architecture leaves them, for the strict check that follows.

    Filters are used to rename. A tensor that one would resample (kernels, tables of relative positions) stays as it is
    and is refused: that is another model, or a teacher that sees the views at its own size.
    """
    module = sys.modules[timm.model_entrypoint(model.pretrained_cfg["architecture"]).__module__]
    own = next((getattr(module, name) for name in _FILTERS if hasattr(module, name)), None)
    found = weights
    if own is not None:
        known = inspect.signature(own).parameters
        options = {"adapt_layer_scale": True} if "adapt_layer_scale" in known else {}
        with contextlib.suppress(Exception):  # filters trip over weights of other models, which the check names
            found = dict(own(dict(weights), model, **options) if "model" in known else own(dict(weights)))
    given = {id(tensor) for tensor in weights.values()}
    for name, tensor in weights.items():
        if name in found and id(found[name]) not in given and found[name].numel() != tensor.numel():
            found[name] = tensor
    computed = dict(model.named_buffers()).keys() - expected.keys()
    found = {name: one for name, one in found.items() if name not in computed}
    counts = {name: one for name, one in expected.items() if name.endswith("num_batches_tracked")}
    return counts | found


def resample_positions(positions_1ND: Tensor, *, grid: tuple[int, int], prefix: int) -> Tensor:
    """Resample a square grid's positional embedding to another grid, as the authors do for 384 pixels.

    Bicubic with half-pixel centres and without antialiasing; the `prefix` tokens (class, distillation) are kept. An
    embedding that already fits, or whose patches form no square, is returned as it is.

    Args:
        positions_1ND: shape (1, prefix + side**2, D).
        grid: rows and columns of patches wanted.
        prefix: tokens before the patches.

    Returns:
        Shape (1, prefix + rows * columns, D), the dtype of the input.
    """
    patches = positions_1ND.shape[1] - prefix
    side = math.isqrt(max(patches, 0))
    if patches == math.prod(grid) or side == 0 or side**2 != patches:
        return positions_1ND
    old_1DHW = positions_1ND[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    new_1DHW = interpolate(old_1DHW, size=tuple(grid), mode="bicubic", align_corners=False, antialias=False)
    new_1ND = new_1DHW.flatten(2).transpose(1, 2).to(positions_1ND.dtype)
    return torch.cat((positions_1ND[:, :prefix], new_1ND), dim=1)


def _keep_new_heads(model: Any, weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    heads = model.pretrained_cfg["classifier"]
    for head in (heads,) if isinstance(heads, str) else heads:
        names = (f"{head}.weight", f"{head}.bias")
        weights.update({name: expected[name] for name in names if name in expected})


def _misfits(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(wanted.shape)}"
        for name, wanted in expected.items()
        if name in weights and weights[name].shape != wanted.shape
    ]
    missing = [f"{name} is missing" for name in expected if name not in weights]
    return shapes + missing + [f"{name} is unexpected" for name in weights if name not in expected]
