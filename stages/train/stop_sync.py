"""All ranks of a training stop after the same step."""

import time

import torch
import torch.distributed as dist

_LISTEN_SECONDS = 2.0


class StopSync:
    """Makes all ranks stop at the same step when rank 0 gets a stop request: a checkpoint needs all ranks.

    Rank 0 tells the other ranks, and with each message the step of the next one, in about two seconds: a step
    in between costs nothing and does not wait for the device. A single rank stops at once.

    Args:
        step: the first at which all ranks listen.
        world: number of processes.
        device: of this process, through which they talk.
    """

    def __init__(self, step: int, *, world: int, device: torch.device) -> None:
        self._world, self._device = world, device
        self._heard = self._next = step
        self._since = time.perf_counter()

    def should_stop(self, step: int, requested: bool) -> bool:
        """Whether all ranks stop after `step` steps. Every rank calls it at every step; rank 0's `requested` counts."""
        if self._world == 1:
            return requested
        if step < self._next:
            return False
        word = torch.tensor([requested, self._pause(step)], dtype=torch.int64, device=self._device)
        dist.broadcast(word, src=0)
        ends, pause = word.tolist()
        self._heard, self._next, self._since = step, step + pause, time.perf_counter()
        return bool(ends)

    def _pause(self, step: int) -> int:
        """Steps that take two seconds at the rate since the last message, and at most twice as many as those were."""
        steps, seconds = step - self._heard, time.perf_counter() - self._since
        return max(1, int(steps * _LISTEN_SECONDS / max(seconds, _LISTEN_SECONDS / 2)))
