"""Which weights a classifier accepts, and how positions are resampled."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch.nn.functional import interpolate

from stages.models.classifier import build
from stages.models.state_dict import load_weights, resample_positions
from stages.models.weight_file import read_weights
from tests.support.students import tiny

LITE0 = Path(__file__).parents[2] / "../shared/data/tf_efficientnet_lite0.safetensors"
needs_lite0 = pytest.mark.skipif(not LITE0.exists(), reason="needs real weights in ../shared/data")


def test_weights_load_exactly_into_a_student_of_the_same_kind():
    one, other = tiny(), tiny()
    load_weights(other, one.model.state_dict(), source="here")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_weights_of_other_classes_are_refused_by_name_and_count(refused):
    error = refused(load_weights, tiny(num_classes=12), tiny().model.state_dict(), source="w.pth")
    start = (
        "w.pth does not fit deit_tiny_distilled_patch16_224: head.weight is (10, 96), expected (12, 96) (and 3 more)"
    )
    assert error.startswith(start)


def test_missing_and_unexpected_weights_are_named(refused):
    weights = tiny().model.state_dict()
    token = weights.pop("dist_token")
    assert "tiny_distilled_patch16_224: dist_token is missing; " in refused(
        load_weights, tiny(), weights, source="w.pth"
    )
    weights |= {"dist_token": token, "extra.bias": token}
    assert "extra.bias is unexpected; " in refused(load_weights, tiny(), weights, source="w.pth")


@pytest.mark.parametrize(
    ("distilled", "shapes"), [(True, "17, 96), expected (1, 18"), (False, "18, 96), expected (1, 17")]
)
def test_weights_with_and_without_a_distillation_token_do_not_fit_each_other(distilled, shapes, refused):
    weights = tiny(not distilled).model.state_dict()
    assert f"pos_embed is (1, {shapes}, 96) (and" in refused(load_weights, tiny(distilled), weights, source="w.pth")


def test_a_refused_load_changes_nothing(refused):
    student = tiny(num_classes=12)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    refused(load_weights, student, tiny().model.state_dict(), source="w.pth")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("distilled", [True, False])
def test_a_new_head_keeps_its_first_weights_and_the_rest_is_transferred(distilled):
    source, student = tiny(distilled), tiny(distilled, num_classes=12)
    first = {name: value.clone() for name, value in student.model.state_dict().items()}
    weights = source.model.state_dict()
    load_weights(student, weights, source="w.pth", new_head=True)
    assert weights["head.weight"].shape == (10, 96)  # the caller's table is left alone
    for name, value in student.model.state_dict().items():
        expected = first if name.startswith("head") else source.model.state_dict()
        assert torch.equal(value, expected[name]), name


def test_a_new_head_is_new_even_where_the_old_one_has_its_size():
    source, student = tiny(), tiny()
    first = student.model.head_dist.weight.clone()
    load_weights(student, source.model.state_dict(), source="w.pth", new_head=True)
    assert torch.equal(student.model.head_dist.weight, first)
    assert torch.equal(student.model.blocks[0].mlp.fc1.weight, source.model.blocks[0].mlp.fc1.weight)


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of Keys' cubic convolution with a = -.75, half-pixel centres, edges repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        x = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            d, a = abs(x - j), -0.75
            inner, outer = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(j, 0), old - 1)] += inner if d <= 1 else outer
    return matrix


@pytest.mark.parametrize(("prefix", "new"), [(1, 24), (2, 24), (2, 20), (2, 10)])
def test_positions_are_resampled_bicubic_without_antialiasing_and_prefix_tokens_kept(prefix, new):
    old = torch.randn(1, prefix + 14 * 14, 8, generator=torch.Generator().manual_seed(1))
    ours = resample_positions(old, grid=(new, new), prefix=prefix)
    assert torch.equal(ours[:, :prefix], old[:, :prefix])

    grid = old[0, prefix:].reshape(14, 14, 8)
    by_torch = torch.stack(
        [interpolate(grid[None, None, :, :, d], (new, new), mode="bicubic", antialias=False)[0, 0] for d in range(8)],
        -1,
    )
    torch.testing.assert_close(ours[0, prefix:], by_torch.reshape(new * new, 8))

    m = bicubic_matrix(14, new)
    by_hand = np.einsum("ij,kl,jld->ikd", m, m, grid.double().numpy()).reshape(new * new, 8)
    np.testing.assert_allclose(ours[0, prefix:].numpy(), by_hand, atol=1e-5)

    timms = resample_abs_pos_embed(old, new_size=(new, new), num_prefix_tokens=prefix)
    assert (ours - timms).abs().max() > 0.05


def test_positions_that_fit_are_left_alone_even_on_a_grid_that_is_no_square():
    positions = torch.randn(1, 2 + 16, 8)
    assert torch.equal(resample_positions(positions, grid=(2, 8), prefix=2), positions)


def test_distilled_weights_for_224_pixels_start_a_student_for_384():
    name, extra = "deit_tiny_distilled_patch16_224", {"depth": 1}
    small = build(name, num_classes=10, img_size=224, drop_path=0.0, extra=extra).model.state_dict()
    student = build(name, num_classes=10, img_size=384, drop_path=0.0, extra=extra)
    load_weights(student, small, source="w.pth")
    large = student.model.state_dict()
    assert torch.equal(large["pos_embed"], resample_positions(small["pos_embed"], grid=(24, 24), prefix=2))
    assert all(torch.equal(large[name], small[name]) for name in small if name != "pos_embed")


@needs_lite0
def test_real_weights_fit_their_own_model_and_no_other(refused):
    weights = read_weights(LITE0)
    own = build("tf_efficientnet_lite0", num_classes=1000, img_size=224, drop_path=0.0, extra={})
    load_weights(own, weights, source=LITE0.name)
    assert torch.equal(own.model.classifier.weight, weights["classifier.weight"])
    for model in ("tf_efficientnet_lite1", "resnet18"):
        with torch.device("meta"):
            other = build(model, num_classes=1000, img_size=224, drop_path=0.0, extra={})
        error = refused(load_weights, other, weights, source=LITE0.name)
        assert error.startswith(f"tf_efficientnet_lite0.safetensors does not fit {model}: ")
