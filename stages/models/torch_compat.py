"""Messages of torch that the code matches, in one place; `tests/models/test_torch_compat.py` fails when they change."""

import torch

_ALLOCATOR = "DefaultCPUAllocator"
_DATA_PROCESS = "DataLoader worker"


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the allocator of the CPU, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or _ALLOCATOR in str(error)


def lost_data_process(error: Exception) -> bool:
    """Whether a process of a DataLoader was lost: it says so, or its socket breaks first."""
    return not isinstance(error, RuntimeError) or str(error).startswith(_DATA_PROCESS)
