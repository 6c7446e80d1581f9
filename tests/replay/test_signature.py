"""Signatures pass over rounding and catch whatever shows another picture."""

import numpy as np
import pytest

from stages.replay.signature import differs, signature, signed_rows

RANDOM = np.random.default_rng(0)
VIEW = np.kron(RANDOM.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)


def test_a_signature_is_the_mean_of_each_channel_over_a_4_by_4_grid():
    grid = signature(VIEW).reshape(4, 4, 3)
    for y, x in ((0, 0), (1, 3), (3, 2)):
        block = VIEW[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].reshape(-1, 3)
        assert np.abs(grid[y, x] - block.mean(0)).max() <= 0.5


def test_a_side_that_4_does_not_divide_is_covered_whole():
    view = np.full((30, 30, 3), 7, np.uint8)
    view[29, 29] = 255
    assert signature(view)[-1] > 7
    assert set(signature(view)[:-3].tolist()) == {7}


def test_rounding_by_one_level_does_not_trip_it():
    for _ in range(20):
        noisy = np.clip(VIEW.astype(int) + RANDOM.integers(-1, 2, VIEW.shape), 0, 255).astype(np.uint8)
        assert not differs(signature(VIEW), signature(noisy))
    assert not differs(signature(VIEW), signature(np.clip(VIEW.astype(int) + 1, 0, 255).astype(np.uint8)))


@pytest.mark.parametrize(
    "other",
    [
        np.roll(VIEW, 1, axis=1), np.roll(VIEW, 1, axis=0), VIEW[:, ::-1], 255 - VIEW, VIEW[..., ::-1],
        np.clip(VIEW.astype(int) + 4, 0, 255).astype(np.uint8),
    ],
    ids=["one column", "one row", "flip", "invert", "channels", "four levels brighter"],
)  # fmt: skip
def test_another_picture_trips_it(other):
    assert differs(signature(VIEW), signature(np.ascontiguousarray(other)))


def test_every_row_is_signed_in_some_view_and_a_few_in_each():
    assert set.union(*(signed_rows(view, 21) for view in range(11))) == set(range(21))
    assert {len(signed_rows(view, 21)) for view in range(40)} == {2}
    assert signed_rows(3, 1) == {0}
