"""Weights as named tensors, loaded into a classifier where they fit exactly.

Legend: N = tokens, D = width. Rejected: timm's loader, which resamples positional embeddings with antialiasing where
the authors did not.
"""

import contextlib
import inspect
import math
import sys
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from schemas.errors import UserError
from stages.models.classifier import Classifier

_FILTERS = (
    "checkpoint_filter_fn",
    "checkpoint_filter_fn_classifier",
    "pretrained_filter_fn",
    "_filter_fn",
    "_filter_torchvision_pretrained",
)
"""What timm's modules call the function that renames an old checkpoint's tensors."""


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
        weights, below = _below_prefix(weights, expected, source)
        note = ", ".join(filter(None, (note, below)))
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
    _refuse_strange_values(weights, dict(model.named_parameters()), source)
    model.load_state_dict(weights)
    classifier.weights_note = f"{source}: took {note}" if note else ""


def _below_prefix(
    weights: dict[str, Tensor], expected: dict[str, Tensor], source: str
) -> tuple[dict[str, Tensor], str]:
    """The weights of the part of a larger model that has all tensors, as Lightning's `model.` is, and what it was.

    Raises:
        UserError: if several parts have them, such as a student and its teacher.
    """
    wanted = [name for name in expected if not name.endswith("num_batches_tracked")]
    prefixes = [name.removesuffix(wanted[0]) for name in weights if name.endswith(f".{wanted[0]}")]
    whole = [prefix for prefix in prefixes if all(f"{prefix}{name}" in weights for name in wanted)]
    if not whole or all(name in weights for name in wanted):
        return weights, ""
    if len(whole) > 1:
        raise UserError(
            f"{source} holds several networks, {' and '.join(whole)}; save the state_dict of the one that is meant"
        )
    below = {name.removeprefix(whole[0]): one for name, one in weights.items() if name.startswith(whole[0])}
    left_out = len(weights) - len(below)
    return below, f"what is below {whole[0]}" + (f" and left {left_out} other tensors out" if left_out else "")


def _refuse_strange_values(weights: dict[str, Tensor], parameters: dict[str, Tensor], source: str) -> None:
    """Raise UserError for weights of another kind of number, such as quantised ones, and for those not finite."""
    for name, parameter in parameters.items():
        one = weights[name]
        if parameter.is_floating_point() and not one.is_floating_point():
            raise UserError(
                f"{source}: {name} holds {str(one.dtype).removeprefix('torch.')}, as quantised weights do, where "
                "floating point is expected; give the weights from before"
            )
        if one.is_floating_point() and not torch.isfinite(one).all():
            raise UserError(f"{source}: {name} holds numbers that are not finite; give weights of a sound training")


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
