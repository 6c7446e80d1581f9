"""Scratch folders belong to the process that made them."""

import contextlib
import multiprocessing
from multiprocessing import util

from stages.storage.locks import scratch_folder


def test_a_forked_child_that_forgets_a_scratch_folder_leaves_it_to_its_parent(tmp_path):
    stack = contextlib.ExitStack()
    folder = stack.enter_context(scratch_folder("x-", tmp_path))
    ends = util.Finalize(None, stack.close, exitpriority=0)
    del stack  # now the finalizer alone refers to it, and a forked child begins by clearing its finalizers
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    assert child.exitcode == 0 and folder.exists()
    ends()
    assert not folder.exists()
