"""Export: a trained model in the forms in which others load it.

Weights and config are timm's own: `timm.create_model("local-dir:DIR", pretrained=True)` builds the same model, with the
preprocessing and the classes' names it was trained with. The other forms hold the network that timm runs in eval
mode, which of a distilled student is the mean of both heads' logits, on normalised images of any batch size. Of a
distilled student with a head that was never trained, the trained head alone is exported, as timm's plain transformer.
Rejected: timm's saver for the Hugging Face hub, which needs another package and whose arguments change.
"""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.formats import require_export_format
from stages.models.classifier import Classifier
from stages.models.distilled import one_head
from stages.models.export_folder import CARD_FILE, CONFIG_FILE, ONNX_FILE, TORCH_FILE
from stages.models.tensors import to_bytes
from stages.models.weights import MODEL_FILE

_NEEDED = {"onnx": ("onnx", "onnxscript")}


def refuse_missing_packages(format_: str) -> None:
    """Raise UserError if the format is unknown, or what writes it is not installed."""
    require_export_format(format_)
    missing = [name for name in _NEEDED.get(format_, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {format_}: needs {missing[0]}; pip install 'deit-pipeline[export]'")


def file_names(format_: str) -> tuple[str, ...]:
    """Names of the files that a format is made of."""
    weights = {"onnx": ONNX_FILE, "torch-export": TORCH_FILE}.get(format_, MODEL_FILE)
    return (CONFIG_FILE, weights, CARD_FILE) if format_ == "huggingface" else (CONFIG_FILE, weights)


class TimmNetwork(NamedTuple):
    """A network as timm builds it in eval mode: itself, its name in timm, and the arguments it is built with."""

    network: Any
    architecture: str
    arguments: dict[str, Any]


def supported_network(model: Classifier, config: RunFile, classes: tuple[str, ...]) -> TimmNetwork:
    """The network to export: the complete one, or, where one of two heads was never trained, one with the trained head.

    Args:
        model: with its trained weights.
        config: the run file it was trained with.
        classes: names in the order of the logits.
    """
    network = model.model.eval().cpu()
    size = {"img_size": config.image_size} if network.pretrained_cfg.get("fixed_input_size") else {}
    arguments = {**size, **config.student.extra}
    if not (model.distilled and config.train.untrained_heads):
        return TimmNetwork(network, config.student.model.partition(".")[0], arguments)
    head = "distillation" if "class" in config.train.untrained_heads else "class"
    plain, name, all_arguments = one_head(
        network, config.student.model, head, {**arguments, "num_classes": len(classes)}
    )
    return TimmNetwork(plain, name, {key: value for key, value in all_arguments.items() if key != "num_classes"})


def exported(
    model: Classifier, handed_on: TimmNetwork, format_: str, config: RunFile, classes: tuple[str, ...]
) -> dict[str, bytes]:
    """Name → bytes of the files of a format, without a model card.

    Args:
        model: with its trained weights.
        handed_on: what `supported_network` made of it.
        format_: one of `schemas.formats.EXPORT_FORMATS`; "huggingface" has the files of "safetensors".
        config: the run file it was trained with.
        classes: names in the order of the logits.
    """
    described = json.dumps(timm_config(model, handed_on, config, classes), indent=2).encode() + b"\n"
    if format_ == "onnx":
        return {CONFIG_FILE: described, ONNX_FILE: _onnx(handed_on.network, config.image_size)}
    if format_ == "torch-export":
        return {CONFIG_FILE: described, TORCH_FILE: _torch_export(handed_on.network, config.image_size)}
    return {CONFIG_FILE: described, MODEL_FILE: to_bytes(handed_on.network.state_dict())}


def timm_config(model: Classifier, handed_on: TimmNetwork, config: RunFile, classes: tuple[str, ...]) -> dict[str, Any]:
    """The config.json that timm reads beside the weights."""
    about = handed_on.network.pretrained_cfg
    return {
        "architecture": handed_on.architecture,
        "num_classes": len(classes),
        "label_names": list(classes),
        "model_args": handed_on.arguments,
        "pretrained_cfg": {
            "tag": config.train.name,
            "custom_load": False,
            "input_size": [3, config.image_size, config.image_size],
            "fixed_input_size": bool(about.get("fixed_input_size")),
            "interpolation": "bicubic",
            "crop_pct": config.evaluate.crop_pct,
            "crop_mode": "center",
            "mean": list(model.mean),
            "std": list(model.std),
            "num_classes": len(classes),
            "first_conv": about["first_conv"],
            "classifier": about["classifier"],
        },
    }


def _example(side: int) -> tuple[tuple[torch.Tensor], tuple[dict[int, Any]]]:
    """Arguments to trace with, and which of their sides are free: a batch of 1 would be taken for a constant."""
    return (torch.zeros(2, 3, side, side),), ({0: torch.export.Dim("batch")},)


def _onnx(network: torch.nn.Module, side: int) -> bytes:
    arguments, free = _example(side)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, ONNX_FILE)
        torch.onnx.export(
            network,
            arguments,
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=free,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        return path.read_bytes()


def _torch_export(network: torch.nn.Module, side: int) -> bytes:
    arguments, free = _example(side)
    with torch.no_grad():
        program = torch.export.export(network, arguments, dynamic_shapes=free)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, TORCH_FILE)
        torch.export.save(program, path)
        return path.read_bytes()
