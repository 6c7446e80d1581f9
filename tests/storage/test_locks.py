"""Scratch folders belong to the process that made them."""

import contextlib
import os

from stages.storage.locks import scratch_folder


def test_a_forked_child_that_lets_go_of_a_scratch_folder_leaves_it_to_its_parent(tmp_path):
    stack = contextlib.ExitStack()
    folder = stack.enter_context(scratch_folder("x-", tmp_path))
    if (child := os.fork()) == 0:
        del stack  # as multiprocessing does, whose children begin by forgetting their parent's finalizers
        os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    assert folder.exists()
    stack.close()
    assert not folder.exists()
