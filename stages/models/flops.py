"""Model FLOPs: how much arithmetic a view is for a network, and how much of it a device could do at most.

Model FLOPs utilisation (Chowdhery et al. 2022, appendix B) is the arithmetic that a training's views need, over what
the device's matrix units can do in bf16 without sparsity, whatever precision is used. A multiplication and an addition
are two operations; a training step takes three times a forward pass.
"""

import re

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

TRAINING = 3
"""Forward passes that a step's forward and backward pass are worth."""

_PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 311.9,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.1,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
}
"""Dense bf16 (fp16, where a card has no bf16) from NVIDIA's data sheets; the first that is in the card's name."""


def forward_flops(network: nn.Module, side: int, device: torch.device) -> int:
    """Operations of a network's forward pass for one image of `side` pixels, attention's products included."""
    training = network.training
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, side, side, device=device))
    network.train(training)
    return int(counter.get_total_flops())


def peak_flops(device: torch.device) -> float | None:
    """Operations a second that a GPU can do at most; None for CPUs, and for GPUs that are not known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for card, peak in _PEAK_TFLOPS.items() if re.search(rf"\b{card}\b", name)), None)
