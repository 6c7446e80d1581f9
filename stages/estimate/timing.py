"""Timing: what something takes, in seconds of the clock and of all cores together.

Seconds of cores hardly change on a machine with other work; those of the clock do. Of several turns the shortest
counts, and where a CPU has other work, its seconds of cores are dealt over the threads in place of the clock's.

Legend: B views of a batch.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.models.torch_compat import out_of_memory


@dataclass(frozen=True)
class Cost:
    """What one unit of something takes: seconds of the clock, and of cores."""

    seconds: float
    core_seconds: float

    def times(self, factor: float) -> "Cost":
        """The cost of so many units."""
        return Cost(self.seconds * factor, self.core_seconds * factor)

    def plus(self, other: "Cost") -> "Cost":
        """The cost of both, one after the other."""
        return Cost(self.seconds + other.seconds, self.core_seconds + other.core_seconds)


@dataclass(frozen=True)
class BatchCost:
    """What a batch takes: a share that does not depend on its length, and a share for each view.

    Attributes:
        fixed: of a batch of any length, such as the optimiser's step.
        each: of a view.
        batch: the largest batch that was measured; 0 = rates were given.
        note: how it was measured, or where it is from.
    """

    fixed: Cost
    each: Cost
    batch: int = 0
    note: str = ""

    def per_view(self, batch: int) -> Cost:
        """The cost of a view in batches of this length."""
        return self.each.plus(self.fixed.times(1 / batch))


def is_busy() -> bool:
    """Whether the machine has had other work in the last minute that takes more than a quarter of its cores."""
    return os.getloadavg()[0] > (os.cpu_count() or 1) / 4


def cost_of(do: Callable[[], object], budget: float, device: str = "cpu", threads: int = 0) -> Cost:
    """The cost of a call: after one call that does not count it is repeated for about `budget` seconds.

    Args:
        do: the call.
        budget: seconds.
        device: "cpu" or "cuda".
        threads: over which its seconds of cores are dealt, where the clock says nothing; 0 = the clock counts.
    """
    once = _timed(do, device, threads)
    left = budget - once.seconds
    found: list[Cost] = []
    while left > 0 or not found:
        found.append(_timed(do, device, threads))
        left -= found[-1].seconds
    return Cost(min(one.seconds for one in found), statistics.median(one.core_seconds for one in found))


def batch_cost(
    make: Callable[[int], Callable[[], object]], most: int, budget: float, device: str, threads: int = 0
) -> BatchCost:
    """The cost of batches, from a pair of views and from as many as half the budget and the memory allow.

    Args:
        make: what to do with a batch of B views, B even.
        most: the largest B.
        budget: seconds for all of it.
        device: "cpu" or "cuda".
        threads: as in `cost_of`.
    """
    small = once = cost_of(make(2), budget * 0.1, device, threads)
    batch = 2
    while 2 * batch <= most and 2 * once.seconds < budget * 0.6:
        try:
            once = _timed(make(2 * batch), device, threads)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            break
        batch *= 2
    if batch == 2:
        return BatchCost(Cost(0.0, 0.0), small.times(1 / batch), batch)
    found = cost_of(make(batch), budget * 0.4, device, threads)
    fixed, each = _line((2, small.seconds), (batch, found.seconds))
    fixed_core, each_core = _line((2, small.core_seconds), (batch, found.core_seconds))
    return BatchCost(Cost(fixed, fixed_core), Cost(each, each_core), batch)


def _line(first: tuple[int, float], last: tuple[int, float]) -> tuple[float, float]:
    """A fixed share and one for each view, neither below zero, that the larger batch agrees with."""
    slope = max(0.0, (last[1] - first[1]) / (last[0] - first[0]))
    fixed = max(0.0, last[1] - slope * last[0])
    return fixed, (last[1] - fixed) / last[0]


def _timed(do: Callable[[], object], device: str, threads: int) -> Cost:
    _wait(device)
    start, cores = time.perf_counter(), time.process_time()
    do()
    _wait(device)
    took = time.process_time() - cores
    return Cost(took / threads if threads else time.perf_counter() - start, took)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
