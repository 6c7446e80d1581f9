"""Throughput: images a second at the largest batch that fits (paper, Tables 1 and 5, Figure 1).

Weights do not matter to speed and stay random; images are on the device already. Forward passes in eval mode.

Legend: B images of a batch, S side of an image.
"""

import os
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from schemas.config import Member
from schemas.errors import UserError
from stages.models.classifier import build, usual_size
from stages.models.precision import Precision
from stages.models.torch_compat import out_of_memory

_WARM_UP = 3


def throughput(
    member: Member,
    *,
    image_size: int,
    device: torch.device,
    max_batch: int,
    runs: int,
    precision: str,
    num_classes: int = 1000,
) -> dict[str, Any]:
    """Images a second of a model.

    Args:
        member: model and further arguments of timm.create_model; its checkpoint is not read.
        image_size: S; 0 = the model's usual one.
        device: where it runs.
        max_batch: largest batch to try; 0 = until memory ends.
        runs: timed forward passes, after a few that are not.
        precision: fp32, tf32, bf16 or fp16.
        num_classes: of its head.

    Returns:
        `batch_size`, `limited_by` (memory, or max_batch), `images_per_second` over all runs, their `seconds`,
        `parameters`, and what it was measured with: `model`, `extra`, `classes`, `image_size`, `device`, `precision`,
        `threads`, `max_batch`, `torch`, `timm`.

    Raises:
        UserError: if the model cannot be built or not even one image fits memory.
    """
    size = image_size or usual_size(member.model)
    model = (
        build(member.model, num_classes=num_classes, img_size=size, drop_path=0.0, extra=member.extra).eval().to(device)
    )
    computing = Precision(precision, device, "evaluate.precision")
    with computing.switches(search=True), computing.autocast():
        batch, limited_by = largest_batch(model, size, device, max_batch)
        images = torch.randn(batch, 3, size, size, device=device)
        for _ in range(_WARM_UP):
            _seconds(model, images)
        seconds = [_seconds(model, images) for _ in range(runs)]
    return {
        "model": member.model,
        "extra": member.extra,
        "classes": num_classes,
        "image_size": size,
        "parameters": sum(one.numel() for one in model.parameters()),
        "device": device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "max_batch": max_batch,
        "batch_size": batch,
        "limited_by": limited_by,
        "runs": runs,
        "seconds": seconds,
        "images_per_second": batch * runs / sum(seconds),
    }


def largest_batch(model: torch.nn.Module, size: int, device: torch.device, max_batch: int) -> tuple[int, str]:
    """The largest power of two that fits memory, or `max_batch` where that is less; and which of the two it was.

    On a CPU a batch fits while twice what the last one took, which had half as many images, is less than half of the
    memory that is free: a machine that begins to swap, or to end processes, is no measurement.

    Raises:
        UserError: if not even one image fits.
    """
    fits = 0
    while not max_batch or fits < max_batch:
        wanted = min(fits * 2 or 1, max_batch or fits * 2 or 1)
        if device.type == "cpu" and not max_batch and fits and 2 * _peak_bytes() > _free_bytes() / 2:
            return fits, "memory"
        try:
            _seconds(model, torch.zeros(wanted, 3, size, size, device=device))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if not fits:
                raise UserError(f"--throughput: not even one image of {size} pixels fits the memory") from None
            return fits, "memory"
        fits = wanted
    return fits, "max_batch"


def device_name(device: torch.device) -> str:
    """What a device is called: a GPU by its name, a CPU with its number of cores."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"


@torch.inference_mode()
def _seconds(model: torch.nn.Module, images: Tensor) -> float:
    """How long one forward pass takes."""
    _wait(images.device)
    before = time.perf_counter()
    model(images)
    _wait(images.device)
    return time.perf_counter() - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes() -> int:
    """The most memory this process ever had."""
    return _from_proc("/proc/self/status", "VmHWM")


def _free_bytes() -> int:
    return _from_proc("/proc/meminfo", "MemAvailable")


def _from_proc(file: str, key: str) -> int:
    try:
        lines = Path(file).read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
    except (OSError, StopIteration):
        raise UserError("--throughput: what memory is free is not known here; set evaluate.max_batch") from None
