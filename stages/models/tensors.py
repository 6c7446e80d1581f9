"""Named tensors as the bytes of a safetensors file."""

from safetensors.torch import save
from torch import Tensor


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """A safetensors file of named tensors; those that share memory (CoaT's) are written under each of their names."""
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        one = tensor.detach().cpu().contiguous()
        storage = one.untyped_storage().data_ptr()
        apart[name] = one.clone() if storage in storages else one
        storages.add(storage)
    return bytes(save(apart))
