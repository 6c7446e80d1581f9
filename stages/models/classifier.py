"""Any timm classifier with both of its heads in the open.

Legend: B = views, K = classes, N = tokens, D = width. The network is timm's own, so its state_dict has
timm's names and the trained weights load anywhere timm does. Rejected: timm's switch for distilled
training, which returns the heads in train mode only and averages them in eval mode, where
accuracy is wanted for each head and for two ways of fusing them.
"""

import difflib
import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.models import is_model_in_modules
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from schemas.errors import UserError
from stages.models.distilled import keep_both_tokens, refuse_ignored
from stages.models.tensors import to_bytes

_OURS = (
    "num_classes", "img_size", "drop_path_rate", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "pretrained_strict", "checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit",
)  # fmt: skip
"""Arguments of timm.create_model that the run file's own keys stand for, or that are none of the network's."""


class Heads(NamedTuple):
    """Logits of the class head and, where the model has one, of the distillation head; each of shape (B, K)."""

    classes: Tensor
    distillation: Tensor | None

    @property
    def fused(self) -> Tensor:
        """The mean of both heads' logits, as the authors' code fuses them; a single head's own. Shape (B, K)."""
        return self.classes if self.distillation is None else (self.classes + self.distillation) / 2

    def supported(self, untrained: Sequence[str]) -> Tensor:
        """Logits of the heads that were trained, fused where both were. Shape (B, K).

        Args:
            untrained: "class" or "distillation", where the model has two heads of which one was never trained.
        """
        if not untrained or self.distillation is None:
            return self.fused
        return self.distillation if "class" in untrained else self.classes


class Classifier(nn.Module):
    """Any timm classifier, returning `Heads` in train and eval mode alike.

    Models with a distillation token give both heads; all others are run as they are and give one.

    Attributes:
        weights_note: which of several tables of a file its weights were taken from; "" where there was one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.distilled = isinstance(model, VisionTransformerDistilled)
        self.transformer = isinstance(model, VisionTransformer)
        about: dict[str, Any] = self.model.pretrained_cfg  # type: ignore[assignment]
        self.mean: tuple[float, ...] = tuple(about["mean"])
        self.std: tuple[float, ...] = tuple(about["std"])
        self.weights_note = ""

    def forward(self, images_BCHW: Tensor) -> Heads:
        """Logits of a normalised float batch of shape (B, 3, H, W)."""
        if not self.distilled:
            return Heads(self.model(images_BCHW), None)
        tokens_BND = self.model.forward_features(images_BCHW)
        class_BD, distillation_BD = map(self.model.head_drop, (tokens_BND[:, 0], tokens_BND[:, 1]))
        return Heads(self.model.head(class_BD), self.model.head_dist(distillation_BD))


def build(
    model: str, *, num_classes: int, img_size: int, drop_path: float, extra: dict[str, Any], drop_rate: float = 0.0
) -> Classifier:
    """Build a timm classifier with the authors' initial weights, drawn from torch's global generator.

    Args:
        model: a timm name, such as "deit_tiny_distilled_patch16_224"; a tag is allowed and loads nothing.
        num_classes: K.
        img_size: side of the input in pixels; models without a fixed input size take any and are not told.
        drop_path: stochastic depth of the last block; 0 = off.
        extra: further arguments of timm.create_model, such as {"depth": 4}.
        drop_rate: dropout. In a transformer it acts where the authors' timm had it: after the positional embedding and
            on both outputs of every block (paper, Table 8); elsewhere before the classifier. 0 = off.

    Raises:
        UserError: the name is unknown, the model has no stochastic depth, its patches do not divide the
            image, timm refuses `extra`, or it does not give [1, K] logits for one image.
    """
    fixed_size = _known(model).fixed_input_size
    if ours := [key for key in extra if key in _OURS]:
        raise UserError(f"extra = {extra}: {ours[0]} is not free; remove it and use the run file's own keys")
    arguments = {"num_classes": num_classes, **extra}
    if fixed_size:
        arguments["img_size"] = img_size
    if drop_path > 0:
        arguments["drop_path_rate"] = drop_path
    if drop_rate > 0:
        transformer = is_model_in_modules(model.partition(".")[0], ("deit", "vision_transformer"))
        arguments |= dict.fromkeys(("pos_drop_rate", "proj_drop_rate") if transformer else ("drop_rate",), drop_rate)
    try:
        network = timm.create_model(model, **arguments)
    except Exception as error:  # timm raises what it happens to trip over: types, assertions, divisions by zero
        if "'drop_path_rate'" in str(error):
            raise UserError(f"student.drop_path: {model} has no stochastic depth; set it to 0") from error
        raise UserError(
            f"extra = {extra}: timm cannot build {model} with it ({short_cause(error)}); fix or remove it"
        ) from error
    if isinstance(network, VisionTransformerDistilled):
        refuse_ignored(model, extra)
        keep_both_tokens(network)
    _refuse_cut_patches(model, network, img_size)
    _initialise_as_authors(network)
    classifier = Classifier(network)
    _try_out(model, classifier, num_classes, img_size)
    return classifier


def own_size(model: str) -> int:
    """The side in pixels for which timm's weights of a model were made, if its network is built for one; else 0.

    Raises:
        UserError: the name is unknown.
    """
    about = _known(model)
    return int(about.input_size[-1]) if about.fixed_input_size else 0


def usual_size(model: str) -> int:
    """The side of the images in pixels on which timm itself evaluates a model.

    Raises:
        UserError: if timm does not know it.
    """
    about = _known(model)
    return int((about.test_input_size or about.input_size)[-1])


def usual_crop(model: str) -> float:
    """The share of the resized short side that timm cuts out where it evaluates a model at `usual_size`.

    Raises:
        UserError: if timm does not know it.
    """
    about = _known(model)
    return float(about.test_crop_pct or about.crop_pct)


def _known(model: str) -> Any:
    """The configuration of a model in timm; it decides whether the network is built for one input size."""
    name = model.partition(".")[0]
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"timm knows no model {model}; {hint}")
    try:
        return timm.models.get_pretrained_cfg(model)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name}.*")) or f"{name}, which has none"
        raise UserError(f"timm knows no weights {model}; allowed: {tags}") from error


def _refuse_cut_patches(model: str, network: nn.Module, img_size: int) -> None:
    """Raise UserError if patches leave an edge of the image unused, which timm does not report."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    sides = tuple(patch) if isinstance(patch, tuple | list) else (patch,)
    step = math.lcm(*sides)
    if any(img_size % side for side in sides):
        near = max(img_size // step, 1) * step
        size = " x ".join(map(str, sides)) if len(set(sides)) > 1 else sides[0]
        raise UserError(
            f"views.image_size or student.img_size = {img_size}: {model} cuts images into patches of {size} pixels; "
            f"give a multiple, such as {near} or {near + step}"
        )


def _try_out(model: str, classifier: Classifier, num_classes: int, img_size: int) -> None:
    """Run one image through, and write the names, types and shapes of its weights as a checkpoint does.

    Raises:
        UserError: if either fails, or the logits are not of shape (1, K).
    """
    device = next((one.device for one in classifier.parameters()), None)
    training = classifier.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            heads = classifier.eval()(torch.zeros(1, 3, img_size, img_size, device=device))
        to_bytes(
            {
                name: torch.zeros((0, *one.shape[1:]) if one.ndim else (), dtype=one.dtype, device="cpu")
                for name, one in classifier.model.state_dict().items()
            }
        )
    except Exception as error:  # networks raise whatever they trip over
        raise UserError(
            f"{model}: cannot be run on images of {img_size} pixels ({short_cause(error)}); choose another size, "
            "other extra arguments, or another model"
        ) from error
    finally:
        classifier.train(training)
    shape = tuple(getattr(heads.classes, "shape", ())) or type(heads.classes).__name__
    if shape != (1, num_classes):
        raise UserError(
            f"{model}: gives {shape} for one image, expected logits of shape {(1, num_classes)}; "
            "choose a classifier, or remove the extra argument that changes its output"
        )


def _initialise_as_authors(network: nn.Module) -> None:
    # timm draws all else as the authors do, but begins the class token at almost nothing.
    if isinstance(network, VisionTransformer) and network.cls_token is not None:
        nn.init.trunc_normal_(network.cls_token, std=0.02)


def short_cause(error: Exception) -> str:
    """An error's type and text on one line of at most 120 characters."""
    return textwrap.shorten(f"{type(error).__name__}: {error}".removesuffix(": "), 120, placeholder=" ...")
