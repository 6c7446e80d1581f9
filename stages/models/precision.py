"""Precision: in which number format a network computes on a device, and torch's process-wide switches for it.

| name | matrix products and convolutions | everything else |
|---|---|---|
| fp32 | IEEE float32, on a GPU too | float32 |
| tf32 | float32 rounded to 10 bits of mantissa (NVIDIA GPUs from Ampere on) | float32 |
| bf16, fp16 | by autocast | float32, its matrix products in tf32 on a GPU |

DeiT's authors ran student and teacher under fp16 autocast. torch's own default is none of these: it lets convolutions
use TF32 and matrix products not. Rejected: setting the switches once for the process, where a second network, or a
test, would compute by what the first one left.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from schemas.errors import UserError
from schemas.values import AUTO

Role = Literal["student", "teacher"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ON_GPU: dict[Role, str] = {"student": "bf16", "teacher": "fp16"}
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def chosen_precision(wanted: str, role: Role, device: str) -> str:
    """The precision that a run file's key stands for on a kind of device ("cpu" or "cuda"); itself unless "auto"."""
    return wanted if wanted != AUTO else _ON_GPU[role] if device == "cuda" else "fp32"


class Precision:
    """One of the named precisions on one device.

    Args:
        name: fp32, tf32, bf16 or fp16.
        device: where the network computes.
        key: the run file's, for the error.

    Raises:
        UserError: if the device cannot compute so.
    """

    def __init__(self, name: str, device: torch.device, key: str) -> None:
        if name == "tf32" and device.type != "cuda":
            raise UserError(f'{key} = "tf32": is a format of NVIDIA GPUs; set it to "fp32" or "auto" on a CPU')
        self.name, self.device = name, device
        self.scaled = name == "fp16"
        """Whether gradients need a scale to be representable."""

    def autocast(self) -> Any:
        """A context in which layers compute in this precision."""
        dtype = _AUTOCAST.get(self.name)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @contextmanager
    def switches(self, *, search: bool = False, deterministic: bool = False) -> Iterator[None]:
        """Set torch's switches for a forward and backward pass on a GPU, and restore them; on a CPU nothing is set.

        Args:
            search: let cuDNN try its algorithms for each new shape; pays where a convnet sees few shapes.
            deterministic: only algorithms that give the same bits again.
        """
        if self.device.type != "cuda":
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
        matmul.allow_tf32 = cudnn.allow_tf32 = self.name != "fp32"
        cudnn.benchmark, cudnn.deterministic = search and not deterministic, deterministic
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """While a training runs, let torch use algorithms only that give the same bits again.

    Of attention's backward pass, sums over indices and cuBLAS's split products the fastest ways add up in an order that
    changes from run to run.

    Args:
        wanted: false = leave everything as it is.
    """
    if not wanted:
        yield
        return
    before, workspace = torch.are_deterministic_algorithms_enabled(), os.environ.get(_CUBLAS)
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault(_CUBLAS, ":4096:8")  # torch refuses cuBLAS without it
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
