"""Addressed draws: pure in their address, pinned to the bit, and of the distributions they claim.

Addresses are fixed, so every statistic here is the same in each run; a p-value below .001 would be a bug.
"""

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats  # comes with scikit-learn

from stages.replay.draws import Draws, Purpose


def words(seed, purpose, address, count=4):
    return tuple(Draws(seed, purpose).at(*address).words(count).tolist())


def many(draw, count):
    """`count` numbers, each the first at an address of its own, as the pipeline draws them."""
    draws = Draws(7, Purpose.VIEW)
    return [draw(draws.at(index % 50, index // 50)) for index in range(count)]


def assert_distributed(values, cdf):
    assert stats.kstest(values, cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("seed", "purpose", "address", "expected"),
    [
        (0, Purpose.SHUFFLE, (0,), (0xD037F8C3F9A1D176, 0xC057419B4C210765, 0xABF13115117B0065, 0x7BAE035DEA6EA5C0)),
        (0, Purpose.VIEW, (1, 2, 3), (0xE3F297998DD2F873, 0x7251B571638D5C64, 0xF0D01C827A2DBF6F, 0x595B560497BCBFC4)),
        (
            2**32 - 1,
            Purpose.MODEL,
            (2**64 - 1, 0, 5),
            (0xB695792821610C01, 0xDF60FF0A1C484E10, 0xB7F00A40027A1D6C, 0xD06B8A61C7C312B0),
        ),
    ],
)
def test_the_words_of_an_address_are_pinned_for_good(seed, purpose, address, expected):
    assert words(seed, purpose, address) == expected


def test_the_distributions_are_pinned_for_good():
    draws = Draws(1, Purpose.MIX)
    assert draws.at(2, 3).uniform() == 0.9590286253922007
    assert draws.at(2, 3).normal() == pytest.approx(-1.9297889076784296, rel=1e-12)
    assert draws.at(2, 3).beta(0.8) == pytest.approx(0.017296405538430204, rel=1e-12)
    assert draws.at(2, 3).permutation(8).tolist() == [6, 2, 5, 4, 1, 3, 0, 7]


def test_what_an_address_yields_does_not_depend_on_what_was_drawn_before():
    addresses = list(itertools.product((0, 1, 2**32), (0, 5), (0, 9)))
    fresh = {address: words(3, Purpose.VIEW, address, 5) for address in addresses}
    draws = Draws(3, Purpose.VIEW)
    for count, address in enumerate(addresses[::-1] + addresses):
        draws.at(1, 2, 3).words(count)
        draws.uniform()
        assert tuple(draws.at(*address).words(5).tolist()) == fresh[address]


def test_words_come_in_one_order_however_many_are_taken_at_once():
    draws = Draws(3, Purpose.ORDER)
    at_once = draws.at(4).words(9).tolist()
    draws.at(4)
    assert [word for count in (1, 3, 5) for word in draws.words(count).tolist()] == at_once


def test_seeds_purposes_and_addresses_share_no_words():
    keys = itertools.product((0, 1, 2**32 - 1), Purpose)
    addresses = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**64 - 1, 0, 0), (0, 2**64 - 1, 0), (1, 1, 1)]
    found = [words(seed, purpose, address, 100) for seed, purpose in keys for address in addresses]
    assert len({word for run in found for word in run}) == 100 * len(found)


def test_a_long_draw_does_not_run_into_the_neighbouring_addresses():
    long = set(words(0, Purpose.NOISE, (5,), 100_000))
    assert len(long) == 100_000
    for neighbour in ((4,), (6,), (5, 1), (5, 0, 1)):
        assert long.isdisjoint(words(0, Purpose.NOISE, neighbour, 1000))


def test_numpy_integers_are_the_same_addresses_as_python_integers():
    assert words(0, Purpose.PAIR, (np.int64(3), np.uint64(2**63 + 1))) == words(0, Purpose.PAIR, (3, 2**63 + 1))


def test_global_generators_are_neither_read_nor_set():
    random.seed(0)
    np.random.seed(0)
    expected = random.random(), np.random.rand()
    random.seed(0)
    np.random.seed(0)
    first = Draws(0, Purpose.VIEW).at(1).beta(0.8)
    assert (random.random(), np.random.rand()) == expected
    assert Draws(0, Purpose.VIEW).at(1).beta(0.8) == first


def test_uniforms_are_uniform_in_0_to_1():
    assert_distributed(many(Draws.uniform, 20_000), stats.uniform.cdf)
    values = Draws(0, Purpose.VIEW).at(0).uniforms(20_000)
    assert_distributed(values, stats.uniform.cdf)
    assert min(values) >= 0 and max(values) < 1


def test_uniforms_are_the_upper_53_bits_of_the_words():
    draws = Draws(0, Purpose.VIEW)
    expected = [(word >> 11) / 2**53 for word in draws.at(1).words(3).tolist()]
    assert draws.at(1).uniforms(3) == expected
    assert draws.at(1).uniform() == expected[0]


def test_neighbouring_addresses_are_uncorrelated():
    grid = np.array(many(Draws.uniform, 20_000)).reshape(-1, 50)
    for one, other in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / math.sqrt(one.size)


def test_normals_are_standard_normal():
    assert_distributed(many(Draws.normal, 20_000), stats.norm.cdf)


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 4.0])
def test_betas_are_beta_distributed(alpha):
    assert_distributed(many(lambda draws: draws.beta(alpha), 8_000), stats.beta(alpha, alpha).cdf)


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 100.0])
def test_betas_of_extreme_alphas_stay_numbers_in_0_to_1(alpha):
    values = many(lambda draws: draws.beta(alpha), 500)
    assert all(0 <= value <= 1 for value in values)
    assert abs(np.mean(values) - 0.5) < 0.1


def test_permutations_hold_every_number_once():
    draws = Draws(0, Purpose.SHUFFLE)
    for count in (0, 1, 2, 1000):
        assert sorted(draws.at(count).permutation(count).tolist()) == list(range(count))


def test_all_permutations_are_equally_likely():
    found = [tuple(order.tolist()) for order in many(lambda draws: draws.permutation(4), 12_000)]
    counts = [found.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == 12_000
    assert stats.chisquare(counts).pvalue > 1e-3
