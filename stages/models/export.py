"""Export: a trained model in the forms in which others load it.

Weights and config are timm's own: `timm.create_model("local-dir:DIR", pretrained=True)` builds the same model, with the
preprocessing and the classes' names it was trained with. The other forms hold the network that timm runs in eval
mode, which of a distilled student is the mean of both heads' logits, on normalised images of any batch size.
Rejected: timm's saver for the Hugging Face hub, which needs another package and whose arguments change.
"""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from schemas.config import RunFile
from schemas.errors import UserError
from stages.models.classifier import Classifier
from stages.models.tensors import to_bytes
from stages.models.weights import MODEL_FILE

CONFIG_FILE = "config.json"
ONNX_FILE = "model.onnx"
TORCH_FILE = "model.pt2"
FORMATS = ("safetensors", "huggingface", "onnx", "torch-export")
_NEEDED = {"onnx": ("onnx", "onnxscript")}


def refuse_missing_packages(format_: str) -> None:
    """Raise UserError if the format is unknown, or what writes it is not installed."""
    if format_ not in FORMATS:
        raise UserError(f"--format {format_}: unknown; allowed: {', '.join(FORMATS)}")
    missing = [name for name in _NEEDED.get(format_, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {format_}: needs {missing[0]}; pip install 'deit-pipeline[export]'")


def exported(model: Classifier, format_: str, run: RunFile, classes: tuple[str, ...]) -> dict[str, bytes]:
    """Name → bytes of the files of a format, without a model card.

    Args:
        model: with its trained weights.
        format_: one of `FORMATS`; "huggingface" has the files of "safetensors".
        run: the run file it was trained with.
        classes: names in the order of the logits.
    """
    side = run.student.img_size or run.views.image_size
    network = model.model.eval().cpu()
    described = json.dumps(config(model, run, classes), indent=2).encode() + b"\n"
    if format_ == "onnx":
        return {CONFIG_FILE: described, ONNX_FILE: _onnx(network, side)}
    if format_ == "torch-export":
        return {CONFIG_FILE: described, TORCH_FILE: _torch_export(network, side)}
    return {CONFIG_FILE: described, MODEL_FILE: to_bytes(network.state_dict())}


def config(model: Classifier, run: RunFile, classes: tuple[str, ...]) -> dict[str, Any]:
    """The config.json that timm reads beside the weights."""
    about, side = model.model.pretrained_cfg, run.student.img_size or run.views.image_size
    size = {"img_size": side} if about.get("fixed_input_size") else {}
    return {
        "architecture": run.student.model.partition(".")[0],
        "num_classes": len(classes),
        "label_names": list(classes),
        "model_args": {**size, **run.student.extra},
        "pretrained_cfg": {
            "tag": run.train.name,
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": bool(size),
            "interpolation": "bicubic",
            "crop_pct": run.evaluate.crop_pct,
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
