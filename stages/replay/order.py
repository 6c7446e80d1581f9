"""The one stream of views that every run reads, whatever its workers, ranks or resume point.

Pass p permutes the shards, takes them in windows, permutes the pairs of a window, and lets every pair
emit its repeats one after the other: [a₀ b₀ a₁ b₁ …], so that a pair's repeats share one decode. The
stream's unit is the pair-view, two slots; step s of a global batch B takes units [s·B/2, (s+1)·B/2), rank r the r-th
equal slice of them. Beyond 4,096 shards they are permuted in blocks of that many neighbours, and the blocks too, so
finding a step costs O(window) and never a permutation of a million shards. Rejected: a shuffle buffer, whose content
depends on where a run began.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from stages.replay.draws import Draws, Purpose

_BLOCK = 4096
"""Shards that are permuted at once, about; four million images of ImageNet's shards."""


class PairView(NamedTuple):
    """One view of both members of a pair: two neighbouring slots of the stream."""

    shard: int
    pair: int
    view: int
    row_a: int
    row_b: int


class _Window(NamedTuple):
    """Shards whose pairs are shuffled together: its number in the pass, the pairs before it and in it."""

    number: int
    first: int
    pairs: int
    shards: np.ndarray


def pairing(seed: int, shard: int, pass_: int, rows: int) -> np.ndarray:
    """Who is mixed with whom in a shard throughout a pass.

    Args:
        seed: the recipe's seed.
        shard: number of the shard.
        pass_: number of the pass.
        rows: samples in the shard.

    Returns:
        Rows of the members of each pair, int64 of shape (rows // 2, 2); an odd sample sits out.
    """
    return Draws(seed, Purpose.PAIR).at(shard, pass_).permutation(rows)[: rows // 2 * 2].reshape(-1, 2)


class Stream:
    """The endless stream of pair-views over a split.

    Args:
        rows: samples in each shard, by its number.
        repeats: views of each sample in a pass.
        window: shards whose pairs are shuffled together.
        recipe_seed: fixes the pairs.
        seed: fixes the order of shards and pairs.
        passes: distinct passes; later ones show the views of the first again. None = no bound.
    """

    def __init__(
        self, rows: Sequence[int], *, repeats: int, window: int, recipe_seed: int, seed: int, passes: int | None = None
    ) -> None:
        arguments: Any = dict(repeats=repeats, window=window, recipe_seed=recipe_seed, seed=seed, passes=passes)
        self._rebuild = partial(Stream, rows, **arguments)
        self.rows = np.asarray(rows, dtype=np.int64)
        self.repeats, self.window, self.passes = repeats, window, passes
        self._recipe_seed = recipe_seed
        self._draws = Draws(seed, Purpose.ORDER)
        self._block = window * max(1, _BLOCK // window)
        self._block_starts = np.arange(0, max(len(self.rows), 1), self._block)
        self._block_pairs = np.add.reduceat(self.rows // 2, self._block_starts)
        self.units_per_pass = int(self._block_pairs.sum()) * repeats
        self._blocks = lru_cache(2)(self._blocks_uncached)
        self._shards = lru_cache(2)(self._shards_uncached)
        self._window_pairs = lru_cache(4)(self._window_pairs_uncached)

    def __reduce__(self) -> tuple[Callable[[], "Stream"], tuple[()]]:
        return self._rebuild, ()

    def units(self, first: int, count: int) -> list[PairView]:
        """The pair-views [first, first + count) of the stream."""
        found: list[PairView] = []
        while len(found) < count:
            pass_, unit = divmod(first + len(found), self.units_per_pass)
            pair, repeat = divmod(unit, self.repeats)
            window = self._window(pass_, pair)
            pairs = self._window_pairs(pass_, window.first)
            found += self._emit(pairs[pair - window.first :], pass_, repeat, count - len(found))
        return found

    def step(self, step: int, batch: int, rank: int = 0, world: int = 1) -> list[PairView]:
        """The pair-views of one rank's slice of a step; `batch` is global, a multiple of 2 · world."""
        local = batch // 2 // world
        return self.units(step * (batch // 2) + rank * local, local)

    def shards_from(self, step: int, batch: int) -> tuple[list[int], list[int]]:
        """The shards of the window that a step begins in, and those of the window after it, in another pass maybe."""
        pass_, unit = divmod(step * (batch // 2), self.units_per_pass)
        now = self._window(pass_, unit // self.repeats)
        further, pair = divmod(now.first + now.pairs, self.units_per_pass // self.repeats)
        return now.shards.tolist(), self._window(pass_ + further, pair).shards.tolist()

    def _emit(self, pairs: np.ndarray, pass_: int, repeat: int, count: int) -> list[PairView]:
        base = self._shown(pass_) * self.repeats
        needed = -(-(count + repeat) // self.repeats)
        views = [
            PairView(shard, pair, base + r, row_a, row_b)
            for shard, pair, row_a, row_b in pairs[:needed].tolist()
            for r in range(self.repeats)
        ]
        return views[repeat : repeat + count]

    def _shown(self, pass_: int) -> int:
        return pass_ % self.passes if self.passes else pass_

    def _window(self, pass_: int, pair: int) -> _Window:
        """The window that holds a pair of a pass."""
        order, pairs_before, windows_before = self._blocks(pass_)
        nth = int(np.searchsorted(pairs_before, pair, side="right")) - 1
        shards, starts = self._shards(pass_, int(order[nth]))
        within = int(np.searchsorted(starts[:-1], pair - pairs_before[nth], side="right")) - 1
        return _Window(
            number=int(windows_before[nth]) + within,
            first=int(pairs_before[nth] + starts[within]),
            pairs=int(starts[within + 1] - starts[within]),
            shards=shards[within * self.window : (within + 1) * self.window],
        )

    def _blocks_uncached(self, pass_: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pass's order of blocks, and the numbers of pairs and of windows before each."""
        order = self._draws.at(pass_, 2).permutation(len(self._block_pairs))
        sizes = np.diff(self._block_starts, append=len(self.rows))
        windows = -(-sizes // self.window)
        return order, _before(self._block_pairs[order])[:-1], _before(windows[order])[:-1]

    def _shards_uncached(self, pass_: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """A block's shards in the pass's order, and the number of the block's pairs before each window and in all."""
        first = self._block_starts[block]
        rows = self.rows[first : first + self._block]
        order = self._draws.at(pass_, 0, block).permutation(len(rows))
        before = _before(rows[order] // 2)
        return first + order, np.append(before[: -1 : self.window], before[-1])

    def _window_pairs_uncached(self, pass_: int, first: int) -> np.ndarray:
        """Of the window that begins with a pair: its pairs in order, (shard, pair, row a, row b), int64 (pairs, 4)."""
        window = self._window(pass_, first)
        blocks = []
        for shard in window.shards.tolist():
            members = pairing(self._recipe_seed, shard, self._shown(pass_), int(self.rows[shard]))
            number = np.arange(len(members))
            blocks.append(np.column_stack([np.full(len(members), shard), number, members]))
        pairs: np.ndarray = np.concatenate(blocks)
        return pairs[self._draws.at(pass_, 1, window.number).permutation(len(pairs))]


def _before(counts: np.ndarray) -> np.ndarray:
    """How many come before each, and in all."""
    return np.concatenate([[0], np.cumsum(counts)])
