"""The one stream of views that every run reads, whatever its workers, ranks or resume point.

Pass p permutes the shards, takes them in windows, permutes the pairs of a window, and lets every pair
emit its repeats one after the other: [a₀ b₀ a₁ b₁ …], so that a pair's repeats share one decode. The
stream's unit is the pair-view, two slots; step s of a global batch B takes units [s·B/2, (s+1)·B/2), rank r the r-th
equal slice of them. Finding a step costs O(window) beyond a permutation of the shards that is kept for its
pass. Rejected: a shuffle buffer, whose content depends on where a run began.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from stages.replay.draws import Draws, Purpose


class PairView(NamedTuple):
    """One view of both members of a pair: two neighbouring slots of the stream."""

    shard: int
    pair: int
    view: int
    row_a: int
    row_b: int


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
        self.units_per_pass = int((self.rows // 2).sum()) * repeats
        self._pass_order = lru_cache(2)(self._pass_order_uncached)
        self._window_pairs = lru_cache(4)(self._window_pairs_uncached)

    def __reduce__(self) -> tuple[Callable[[], "Stream"], tuple[()]]:
        return self._rebuild, ()

    def units(self, first: int, count: int) -> list[PairView]:
        """The pair-views [first, first + count) of the stream."""
        found: list[PairView] = []
        while len(found) < count:
            pass_, unit = divmod(first + len(found), self.units_per_pass)
            pair, repeat = divmod(unit, self.repeats)
            _, starts = self._pass_order(pass_)
            window = int(np.searchsorted(starts, pair, side="right")) - 1
            pairs = self._window_pairs(pass_, window)
            found += self._emit(pairs[pair - starts[window] :], pass_, repeat, count - len(found))
        return found

    def step(self, step: int, batch: int, rank: int = 0, world: int = 1) -> list[PairView]:
        """The pair-views of one rank's slice of a step; `batch` is global, a multiple of 2 · world."""
        local = batch // 2 // world
        return self.units(step * (batch // 2) + rank * local, local)

    def shards_from(self, step: int, batch: int) -> tuple[list[int], list[int]]:
        """The shards of the window that a step begins in, and those of the window after it, in another pass maybe."""
        pass_, unit = divmod(step * (batch // 2), self.units_per_pass)
        order, starts = self._pass_order(pass_)
        window = int(np.searchsorted(starts, unit // self.repeats, side="right")) - 1
        now = order[window * self.window : (window + 1) * self.window]
        after = order[(window + 1) * self.window : (window + 2) * self.window]
        if not len(after):
            after = self._pass_order(pass_ + 1)[0][: self.window]
        return now.tolist(), after.tolist()

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

    def _pass_order_uncached(self, pass_: int) -> tuple[np.ndarray, np.ndarray]:
        """The pass's order of shards, and the number of pairs before each of its windows."""
        shards = self._draws.at(pass_).permutation(len(self.rows))
        pairs_before = np.concatenate([[0], np.cumsum(self.rows[shards] // 2)])
        return shards, pairs_before[: -1 : self.window]

    def _window_pairs_uncached(self, pass_: int, window: int) -> np.ndarray:
        """A window's pairs in their order: (shard, pair, row a, row b), int64 of shape (pairs, 4)."""
        shards = self._pass_order(pass_)[0][window * self.window : (window + 1) * self.window]
        blocks = []
        for shard in shards.tolist():
            members = pairing(self._recipe_seed, shard, self._shown(pass_), int(self.rows[shard]))
            number = np.arange(len(members))
            blocks.append(np.column_stack([np.full(len(members), shard), number, members]))
        pairs: np.ndarray = np.concatenate(blocks)
        return pairs[self._draws.at(pass_, 1, window).permutation(len(pairs))]
