"""Rank 0 sends a checkpoint to the other ranks as a tensor file: nothing from a network is unpickled."""

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from stages.train.checkpoint import Checkpoint

_STEP, _LINES = "step", "lines"
_TABLES = ("model", "ema", "state")


def hand_out(checkpoint: Checkpoint | None, *, rank: int, device: torch.device) -> Checkpoint | None:
    """Rank 0's checkpoint, on all ranks.

    Args:
        checkpoint: that of rank 0; the other ranks' is not looked at.
        rank: of this process in torch's process group.
        device: through which the group talks.
    """
    data = pack(checkpoint) if rank == 0 and checkpoint else b""
    length = torch.tensor([len(data)], dtype=torch.int64, device=device)
    dist.broadcast(length, src=0)
    content = torch.empty(int(length), dtype=torch.uint8, device=device)
    if data:
        content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    if len(content):
        dist.broadcast(content, src=0)
    if rank == 0 or not len(content):
        return checkpoint if rank == 0 else None
    return unpack(content.cpu().numpy().tobytes())


def pack(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as one safetensors file."""
    tensors = {_STEP: torch.tensor(checkpoint.step)}
    if checkpoint.lines is not None:
        tensors[_LINES] = torch.tensor(list(checkpoint.lines), dtype=torch.uint8)
    for table in _TABLES:
        named: dict[str, Tensor] = getattr(checkpoint, table)
        tensors |= {f"{table}/{name}": tensor.contiguous() for name, tensor in named.items()}
    return bytes(save(tensors))


def unpack(data: bytes) -> Checkpoint:
    """The checkpoint that `pack` has packed."""
    tensors = load(data)
    step, lines = int(tensors.pop(_STEP)), tensors.pop(_LINES, None)
    tables: dict[str, dict[str, Tensor]] = {table: {} for table in _TABLES}
    for name, tensor in tensors.items():
        table, _, key = name.partition("/")
        tables[table][key] = tensor
    return Checkpoint(step=step, lines=None if lines is None else lines.numpy().tobytes(), **tables)
