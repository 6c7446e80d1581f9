"""Weights as named tensors: reading files of them, and loading them into a classifier.

Legend: N = tokens, D = width. Rejected: timm's loader, which resamples positional embeddings with antialiasing where
the authors did not.
"""

import argparse
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from schemas.errors import UserError
from stages.models.classifier import Classifier, short_cause

_TORCH_FILES = (".pth", ".pt", ".bin")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a .safetensors file, or a .pth, .pt or .bin file of tensors; nothing else is ever unpickled.

    Of a checkpoint, the table "model" (the authors') or "state_dict" (timm's) is taken. The authors' training leaves
    its arguments beside them as an argparse.Namespace, a bare record, which is let through and not looked at.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds more than tensors.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *_TORCH_FILES):
        raise UserError(f"{path}: not a weights file; give .safetensors, {', '.join(_TORCH_FILES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give the path of one that exists")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail in many ways
        why = "pickled objects" if isinstance(error, pickle.UnpicklingError) else short_cause(error)
        raise UserError(f"{path}: damaged, or not of tensors alone ({why}); save the state_dict by itself") from error
    for table in ("model", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(table), Mapping):
            found = found[table]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: holds no table of tensors; save the model's state_dict by itself")
    return dict(found)


def load_weights(classifier: Classifier, weights: dict[str, Tensor], *, source: str, new_head: bool = False) -> None:
    """Load weights that fit exactly, apart from the positional embedding's resolution.

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
    weights = dict(weights)
    if new_head:
        _keep_new_heads(model, weights, expected)
    positions = weights.get("pos_embed")
    if positions is not None and positions.ndim == 3 and isinstance(model, VisionTransformer):
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        weights["pos_embed"] = resample_positions(positions, grid=model.patch_embed.grid_size, prefix=prefix)
    if problems := _misfits(weights, expected):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"{source} does not fit {model.pretrained_cfg['architecture']}: {problems[0]}{more}; "
            "name the model and the classes that these weights were trained for"
        )
    model.load_state_dict(weights)


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
