"""Mixing equals an independent computation in numpy, in whatever micro-batches it is done."""

import numpy as np
import pytest
import torch

from schemas.recipe import IMAGENET_MEAN, IMAGENET_STD, Recipe
from stages.data.views import stack_mixes
from stages.replay.decide import Box, DecidedMix, Decider
from stages.replay.mix import Mix, mix, normalise, normalised_mix

VIEWS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
DECIDED = [DecidedMix(0.3, None), DecidedMix(1 - 12 / 64, Box(2, 1, 3, 4)), DecidedMix(1.0, None)]


def by_hand(views: np.ndarray, decided: list[DecidedMix], mean, std) -> np.ndarray:
    """Pairs mixed as Zhang et al. (mixup) and Yun et al. (CutMix) write it, one image at a time."""
    images = (views / 255.0 - np.array(mean)) / np.array(std)
    mixed = images.copy()
    for pair, how in enumerate(decided):
        for own, partner in ((2 * pair, 2 * pair + 1), (2 * pair + 1, 2 * pair)):
            if how.box is None:
                mixed[own] = how.lam * images[own] + (1 - how.lam) * images[partner]
            else:
                for y in range(how.box.top, how.box.top + how.box.height):
                    for x in range(how.box.left, how.box.left + how.box.width):
                        mixed[own][y, x] = images[partner][y, x]
    return mixed.transpose(0, 3, 1, 2)


@pytest.mark.parametrize(("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.25,) * 3)])
def test_mixup_and_cutmix_equal_an_independent_computation(mean, std):
    mixed = mix(normalise(torch.from_numpy(VIEWS), mean, std), stack_mixes(DECIDED))
    np.testing.assert_allclose(mixed.numpy(), by_hand(VIEWS, DECIDED, mean, std), atol=1e-6)


def test_a_recipes_own_decisions_mix_as_computed_by_hand():
    decider = Decider(Recipe(image_size=8))
    decided = [decider.mix(0, pair, 4) for pair in range(20)]
    assert any(one.box for one in decided) and not all(one.box for one in decided)
    views = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    mixed = mix(normalise(torch.from_numpy(views), IMAGENET_MEAN, IMAGENET_STD), stack_mixes(decided))
    np.testing.assert_allclose(mixed.numpy(), by_hand(views, decided, IMAGENET_MEAN, IMAGENET_STD), atol=1e-6)


def test_the_share_of_the_label_is_the_share_of_the_pixels():
    views = np.zeros((2, 8, 8, 3), np.uint8)
    views[0] = 255
    for decided in DECIDED[:2]:
        mixed = mix(normalise(torch.from_numpy(views), (0.0,) * 3, (1.0,) * 3), stack_mixes([decided]))
        assert mixed.mean((1, 2, 3)).tolist() == pytest.approx([decided.lam, 1 - decided.lam])


def test_a_batch_in_pieces_is_mixed_to_the_same_bits():
    images, how = normalise(torch.from_numpy(VIEWS), IMAGENET_MEAN, IMAGENET_STD), stack_mixes(DECIDED)
    pieces = [mix(images[2 * i : 2 * i + 2], Mix(*(one[i : i + 1] for one in how))) for i in range(3)]
    assert torch.equal(torch.cat(pieces), mix(images, how))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("side", [9, 32, 224])
def test_pair_by_pair_on_a_cpu_gives_the_bits_of_the_whole_batch_at_once(side, threads):
    decider = Decider(Recipe(image_size=side, mix_prob=0.8))
    decided = [decider.mix(3, pair, 1) for pair in range(24)]
    kinds = {(one.lam == 1.0, one.box is None) for one in decided}
    assert len(kinds) == 3, "unmixed, mixup and CutMix are all there"
    views = torch.from_numpy(np.random.default_rng(side).integers(0, 256, (48, side, side, 3), dtype=np.uint8))
    how, before = stack_mixes(decided), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        once = mix(normalise(views, IMAGENET_MEAN, IMAGENET_STD), how)
        pairwise = normalised_mix(views, IMAGENET_MEAN, IMAGENET_STD, how)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(pairwise, once) and pairwise.stride() == once.stride()


def test_normalised_rows_are_normalised_pixels():
    """Row by row gives the bits of pixel by pixel, as normalising did before it took whole rows."""
    views = torch.arange(256, dtype=torch.uint8).repeat(3, 2, 1).permute(1, 2, 0)[None]
    scale, shift = 1.0 / (255.0 * torch.tensor(IMAGENET_STD)), torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    assert torch.equal(normalise(views, IMAGENET_MEAN, IMAGENET_STD).permute(0, 2, 3, 1), views.float() * scale - shift)
