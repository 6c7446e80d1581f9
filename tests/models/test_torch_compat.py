"""torch says in the words that are looked for that memory has ended, or a data process."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from stages.models.torch_compat import lost_data_process, out_of_memory


class Dies(Dataset):
    def __getitem__(self, number):
        os.kill(os.getpid(), signal.SIGKILL)

    def __len__(self):
        return 1


def test_a_full_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as full:
        torch.empty(1 << 58, dtype=torch.uint8)
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2) @ torch.zeros(3)
    assert out_of_memory(full.value) and out_of_memory(torch.OutOfMemoryError("x")) and not out_of_memory(other.value)


def test_a_lost_data_process_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as lost:
        next(iter(DataLoader(Dies(), num_workers=1, multiprocessing_context="fork")))
    assert lost_data_process(lost.value) and lost_data_process(ConnectionError()) and lost_data_process(EOFError())
    assert not lost_data_process(RuntimeError("shapes differ"))
