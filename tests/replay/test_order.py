"""Order: every sample its repeats a pass, the same stream for any cut into steps, ranks and resume points."""

import hashlib
import pickle
from collections import Counter
from itertools import groupby

import pytest

from stages.replay import order as order_module
from stages.replay.draws import Draws
from stages.replay.order import PairView, Stream, pairing

ROWS = (7, 4, 6, 5, 8, 3, 1, 0)
PAIRS = sum(rows // 2 for rows in ROWS)
GOLDEN = "a061f14eb07d9748"


def stream(**changes) -> Stream:
    return Stream(ROWS, **(dict(repeats=3, window=3, recipe_seed=5, seed=1) | changes))


def a_pass(of: Stream, number: int) -> list[PairView]:
    return of.units(number * of.units_per_pass, of.units_per_pass)


@pytest.mark.parametrize("number", [0, 1, 5])
def test_every_sample_is_seen_its_repeats_a_pass_and_an_odd_one_sits_out(number):
    seen = Counter((unit.shard, row) for unit in a_pass(stream(), number) for row in (unit.row_a, unit.row_b))
    assert set(seen.values()) == {3}
    assert Counter(shard for shard, _ in seen) == {s: rows // 2 * 2 for s, rows in enumerate(ROWS) if rows > 1}


@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_pass_holds_its_own_views_and_no_others(number):
    assert {unit.view for unit in a_pass(stream(), number)} == {3 * number, 3 * number + 1, 3 * number + 2}


def test_an_odd_samples_turn_to_sit_out_goes_round():
    out = [7 * 6 // 2 - int(pairing(5, 0, number, 7).sum()) for number in range(40)]
    assert set(out) == set(range(7))


def test_the_repeats_of_a_pair_follow_each_other():
    units = a_pass(stream(), 0)
    for first in range(0, len(units), 3):
        same = {(unit.shard, unit.pair, unit.row_a, unit.row_b) for unit in units[first : first + 3]}
        assert len(same) == 1
        assert [unit.view for unit in units[first : first + 3]] == [0, 1, 2]


def test_pairs_of_a_window_are_shuffled_together_and_windows_follow_each_other():
    units = a_pass(stream(window=3, repeats=1), 0)
    shards = [unit.shard for unit in units]
    order = stream()._shards(0, 0)[0]
    windows = [set(order[at : at + 3].tolist()) for at in (0, 3, 6)]
    place = [next(nth for nth, window in enumerate(windows) if shard in window) for shard in shards]
    assert place == sorted(place)
    assert shards != sorted(shards, key=shards.index)


def test_the_order_of_runs_that_were_begun_stays_what_it_was():
    units = stream().units(0, 1000)
    assert hashlib.sha256(repr([tuple(unit) for unit in units]).encode()).hexdigest()[:16] == GOLDEN


def test_shards_beyond_a_block_are_permuted_by_blocks_and_seen_as_often(monkeypatch):
    monkeypatch.setattr(order_module, "_BLOCK", 7)
    rows = [4 + number % 5 for number in range(50)]
    one = Stream(rows, repeats=2, window=3, recipe_seed=5, seed=1)
    for number in (0, 1):
        units = a_pass(one, number)
        seen = Counter((unit.shard, row) for unit in units for row in (unit.row_a, unit.row_b))
        assert set(seen.values()) == {2} and len(seen) == sum(count // 2 * 2 for count in rows)
        blocks = [block for block, _ in groupby(unit.shard // 6 for unit in units)]  # windows of 3 in blocks of 6
        assert sorted(blocks) == list(range(9)) != blocks
    assert a_pass(one, 0) != a_pass(one, 1)


def test_finding_a_step_permutes_a_block_and_never_all_shards(monkeypatch):
    one, longest = Stream([1000] * 100_000, repeats=3, window=16, recipe_seed=0, seed=0), []
    whole = Draws.permutation
    monkeypatch.setattr(Draws, "permutation", lambda self, count: (longest.append(count), whole(self, count))[1])
    one.step(31_000, batch=1024)
    assert 0 < max(longest) <= 16 * 500 < 100_000


def test_the_shards_of_the_window_after_a_passs_last_are_those_of_the_next_passs_first():
    one, last = stream(), stream().units_per_pass // 8 - 1
    now, after = one.shards_from(last, batch=16)
    assert now == one._shards(0, 0)[0][-2:].tolist() and after == one._shards(1, 0)[0][:3].tolist()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_slices_put_together_are_the_global_batch(world):
    for step in range(12):
        whole = stream().step(step, batch=16)
        assert [unit for rank in range(world) for unit in stream().step(step, 16, rank, world)] == whole


def test_the_steps_put_together_are_the_stream_wherever_one_begins():
    units = stream().units(0, 3 * 8 * PAIRS)
    for start in (0, 1, 7, 20):
        resumed = stream()
        cut = [unit for step in range(start, start + 9) for unit in resumed.step(step, batch=16)]
        assert cut == units[start * 8 : (start + 9) * 8]


def test_any_cut_of_the_stream_is_the_same_stream():
    units = stream().units(0, 200)
    for first in (0, 1, 2, 41, 100):
        for count in (1, 2, 3, 50, 99):
            assert stream().units(first, count) == units[first : first + count]


def test_a_copy_in_another_process_reads_the_same_stream():
    one = stream()
    one.units(0, 10)
    assert pickle.loads(pickle.dumps(one)).units(5, 100) == stream().units(5, 100)


def test_views_begin_again_only_after_the_passes_there_are():
    bounded, endless = stream(passes=2), stream()
    assert a_pass(bounded, 1) == a_pass(endless, 1)
    again = a_pass(bounded, 2)
    assert {unit.view for unit in again} == {0, 1, 2}
    assert sorted(again) == sorted(a_pass(endless, 0))
    assert again != a_pass(endless, 0)


def test_pairs_depend_on_the_recipe_alone_and_the_order_on_the_runs_seed_as_well():
    one, other = a_pass(stream(), 0), a_pass(stream(seed=2, window=2), 0)
    assert sorted(one) == sorted(other)
    assert one != other
    assert sorted(a_pass(stream(recipe_seed=6), 0)) != sorted(one)


def test_pairs_change_from_pass_to_pass():
    first, second = (set(map(frozenset, pairing(5, 4, number, 8).tolist())) for number in (0, 1))
    assert first != second
