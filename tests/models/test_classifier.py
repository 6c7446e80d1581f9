"""Students: sizes, first weights, heads, and which weights they accept."""

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.nn.functional import interpolate

from schemas.errors import UserError
from stages.models.classifier import Classifier, build
from stages.models.state_dict import load_weights, resample_positions
from stages.models.weight_file import read_weights

TINY = {"depth": 4, "embed_dim": 96, "num_heads": 3, "patch_size": 8}
LITE0 = Path(__file__).parents[2] / "../shared/data/tf_efficientnet_lite0.safetensors"
needs_lite0 = pytest.mark.skipif(not LITE0.exists(), reason="needs real weights in ../shared/data")


def tiny(
    distilled: bool = True, *, num_classes: int = 10, img_size: int = 32, drop_path: float = 0.0, **extra
) -> Classifier:
    name = "deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224"
    return build(name, num_classes=num_classes, img_size=img_size, drop_path=drop_path, extra=TINY | extra)


def images(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as refused:
        call(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("model", "img_size", "count"),
    [
        ("deit_tiny_patch16_224", 224, 5_717_416),
        ("deit_small_patch16_224", 224, 22_050_664),
        ("deit_base_patch16_224", 224, 86_567_656),
        ("deit_base_patch16_384", 384, 86_859_496),
        ("deit_tiny_distilled_patch16_224", 224, 5_910_800),
        ("deit_small_distilled_patch16_224", 224, 22_436_432),
        ("deit_base_distilled_patch16_224", 224, 87_338_192),
        ("deit_base_distilled_patch16_384", 384, 87_630_032),
        ("deit_base_distilled_patch16_224", 384, 87_630_032),
    ],
)
def test_parameter_counts_are_the_papers(model, img_size, count):
    with torch.device("meta"):
        student = build(model, num_classes=1000, img_size=img_size, drop_path=0.1, extra={})
    assert sum(parameter.numel() for parameter in student.parameters()) == count


@pytest.mark.parametrize("distilled", [True, False])
def test_first_weights_are_drawn_as_the_authors_draw_them(distilled):
    torch.manual_seed(0)
    name = "deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224"
    weights = build(name, num_classes=1000, img_size=224, drop_path=0.1, extra={}).model.state_dict()
    normal = ["cls_token", "pos_embed", "head.weight", "blocks.0.attn.qkv.weight", "blocks.11.mlp.fc2.weight"]
    for name in [*normal, "dist_token", "head_dist.weight"] if distilled else normal:
        count = weights[name].numel()
        # four standard errors of a mean and of a standard deviation of `count` normal numbers
        assert weights[name].std().item() == pytest.approx(0.02, abs=4 * 0.02 / (2 * count) ** 0.5), name
        assert weights[name].mean().item() == pytest.approx(0, abs=4 * 0.02 / count**0.5), name
    assert all(not value.any() for name, value in weights.items() if name.endswith("bias") and "patch" not in name)
    assert all(value.eq(1).all() for name, value in weights.items() if "norm" in name and name.endswith("weight"))


def test_the_same_seed_draws_the_same_first_weights():
    torch.manual_seed(5)
    one = tiny().state_dict()
    torch.manual_seed(5)
    other = tiny().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_drop_path_grows_linearly_with_depth():
    with torch.device("meta"):
        student = build("deit_small_distilled_patch16_224", num_classes=10, img_size=224, drop_path=0.1, extra={})
    for depth, block in enumerate(student.model.blocks):
        rates = [getattr(path, "drop_prob", 0.0) for path in (block.drop_path1, block.drop_path2)]
        assert rates == pytest.approx([0.1 * depth / 11] * 2), depth


def test_drop_path_reaches_convnets_and_zero_turns_it_off():
    def rates(drop_path: float) -> list[float]:
        with torch.device("meta"):
            student = build("regnety_002", num_classes=10, img_size=224, drop_path=drop_path, extra={})
        return [module.drop_prob for module in student.modules() if hasattr(module, "drop_prob")]

    assert max(rates(0.1)) == pytest.approx(0.1)
    assert rates(0.0) == []


def test_both_heads_come_out_in_train_and_in_eval_mode_and_equal_timms():
    student = tiny()
    student.model.set_distilled_training(True)
    heads, (classes, distillation) = student.train()(images()), student.model(images())
    torch.testing.assert_close(heads.classes, classes)
    torch.testing.assert_close(heads.distillation, distillation)
    heads, average = student.eval()(images()), student.model(images())
    torch.testing.assert_close((heads.classes + heads.distillation) / 2, average)
    assert not torch.equal(heads.classes, heads.distillation)


def dropouts(model: str, extra: dict) -> dict[str, float]:
    with torch.device("meta"):
        student = build(model, num_classes=7, img_size=64, drop_path=0.0, drop_rate=0.1, extra=extra)
    return {name: module.p for name, module in student.model.named_modules() if isinstance(module, nn.Dropout)}


def test_dropout_sits_where_the_authors_had_it():
    rates = dropouts("deit_tiny_distilled_patch16_224", {"depth": 2})
    places = {"pos_drop"} | {
        f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")
    }
    assert {name for name, rate in rates.items() if rate} == places
    assert set(rates.values()) == {0.0, 0.1}
    assert dropouts("regnety_002", {}) == {"head.drop": 0.1}


@pytest.mark.parametrize(("side", "offers"), [(225, "224 or 240"), (8, "16 or 32")])
def test_an_image_that_patches_do_not_divide_is_refused(side, offers):
    error = refusal(build, "deit_tiny_patch16_224", num_classes=2, img_size=side, drop_path=0.0, extra={})
    assert error.startswith(
        f"views.image_size or student.img_size = {side}: deit_tiny_patch16_224 cuts images into patches"
    )
    assert error.endswith(offers)


def test_dropout_acts_on_both_heads():
    student = tiny(drop_rate=0.5).train()
    torch.manual_seed(0)
    one, other = student(images()), student(images())
    student.eval()
    assert not torch.equal(one.classes, other.classes) and not torch.equal(one.distillation, other.distillation)
    assert torch.equal(student(images()).distillation, student(images()).distillation)


@pytest.mark.parametrize("model", ["resnet18", "deit_tiny_patch16_224"])
def test_other_classifiers_run_as_they_are_with_one_head(model):
    student = build(model, num_classes=7, img_size=64, drop_path=0.0, extra={}).eval()
    heads = student(images(side=64))
    assert heads.distillation is None and not student.distilled
    assert torch.equal(heads.classes, student.model(images(side=64)))
    assert heads.classes.shape == (2, 7)


def test_the_students_weights_have_timms_names():
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=10, img_size=32, **TINY)
    theirs.load_state_dict(tiny().model.state_dict())


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("deit_tyni_patch16_224", "did you mean .*deit_tiny_patch16_224"),
        ("zzzzzzzz", "timm.list_models"),
        ("hf-hub:timm/resnet18", "timm knows no model"),
        ("deit_tiny_patch16_224.absent", "allowed: deit_tiny_patch16_224.fb_in1k"),
    ],
)
def test_an_unknown_name_is_refused_with_what_comes_close(model, hint):
    with pytest.raises(UserError, match=hint):
        build(model, num_classes=10, img_size=32, drop_path=0.0, extra={})


def test_drop_path_is_refused_where_the_model_has_none():
    with torch.device("meta"):
        assert "student.drop_path" in refusal(build, "vgg11", num_classes=2, img_size=32, drop_path=0.1, extra={})
        build("vgg11", num_classes=2, img_size=32, drop_path=0.0, extra={})


@pytest.mark.parametrize(
    "extra", [{"typo": 1}, {"embed_dim": 100, "num_heads": 3}, {"num_heads": 0}, {"pretrained": True}, {"img_size": 64}]
)
def test_a_wrong_extra_argument_is_refused(extra):
    error = refusal(build, "deit_tiny_patch16_224", num_classes=2, img_size=32, drop_path=0.0, extra=extra)
    assert error.startswith("extra = ") and next(iter(extra)) in error


def test_weights_load_exactly_into_a_student_of_the_same_kind():
    one, other = tiny(), tiny()
    load_weights(other, one.model.state_dict(), source="here")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_weights_of_other_classes_are_refused_by_name_and_count():
    error = refusal(load_weights, tiny(num_classes=12), tiny().model.state_dict(), source="w.pth")
    start = (
        "w.pth does not fit deit_tiny_distilled_patch16_224: head.weight is (10, 96), expected (12, 96) (and 3 more)"
    )
    assert error.startswith(start)


def test_missing_and_unexpected_weights_are_named():
    weights = tiny().model.state_dict()
    token = weights.pop("dist_token")
    assert "tiny_distilled_patch16_224: dist_token is missing; " in refusal(
        load_weights, tiny(), weights, source="w.pth"
    )
    weights |= {"dist_token": token, "extra.bias": token}
    assert "extra.bias is unexpected; " in refusal(load_weights, tiny(), weights, source="w.pth")


@pytest.mark.parametrize(
    ("distilled", "shapes"), [(True, "17, 96), expected (1, 18"), (False, "18, 96), expected (1, 17")]
)
def test_weights_with_and_without_a_distillation_token_do_not_fit_each_other(distilled, shapes):
    weights = tiny(not distilled).model.state_dict()
    assert f"pos_embed is (1, {shapes}, 96) (and" in refusal(load_weights, tiny(distilled), weights, source="w.pth")


def test_a_refused_load_changes_nothing():
    student = tiny(num_classes=12)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    refusal(load_weights, student, tiny().model.state_dict(), source="w.pth")
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


@pytest.mark.parametrize("table", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_torch_files_are_read_bare_or_as_the_authors_and_timm_nest_them(tmp_path, suffix, table):
    weights = {"head.weight": torch.arange(6.0)}
    path = tmp_path / f"w{suffix}"
    torch.save({table: weights, "epoch": 3} if table else weights, path)
    assert torch.equal(read_weights(path)["head.weight"], weights["head.weight"])


def test_safetensors_are_read(tmp_path):
    save_file({"a": torch.arange(6.0)}, tmp_path / "w.safetensors")
    assert read_weights(str(tmp_path / "w.safetensors"))["a"].tolist() == [0, 1, 2, 3, 4, 5]


def write_pickled_object(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=Fraction(1, 3))}, path)


def test_a_checkpoint_of_the_authors_training_gives_its_model_whatever_lies_beside_it(tmp_path):
    beside = {"optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=1, model="deit")}
    torch.save({"model": {"a": torch.ones(2)}, **beside}, tmp_path / "checkpoint.pth")
    assert read_weights(tmp_path / "checkpoint.pth")["a"].tolist() == [1, 1]


def write_half_a_file(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def write_numbers(path: Path) -> None:
    torch.save({"model": {"a": 1.0}}, path)


def write_noise(path: Path) -> None:
    path.write_bytes(b"this is no weights file" * 10)


@pytest.mark.parametrize(
    ("name", "write", "complaint"),
    [
        ("absent.pth", None, "no such weights file"),
        ("w.npz", write_noise, "not a weights file"),
        ("w.safetensors", write_noise, "damaged, or not of tensors alone"),
        ("w.pth", write_noise, "damaged, or not of tensors alone"),
        ("w.pth", write_half_a_file, "damaged, or not of tensors alone"),
        ("w.pth", write_pickled_object, "(pickled objects)"),
        ("w.pth", write_numbers, "holds no table of tensors"),
    ],
)
def test_files_that_hold_no_weights_are_refused_in_one_line(tmp_path, name, write, complaint):
    if write:
        write(tmp_path / name)
    assert complaint in refusal(read_weights, tmp_path / name)


@needs_lite0
def test_real_weights_fit_their_own_model_and_no_other():
    weights = read_weights(LITE0)
    own = build("tf_efficientnet_lite0", num_classes=1000, img_size=224, drop_path=0.0, extra={})
    load_weights(own, weights, source=LITE0.name)
    assert torch.equal(own.model.classifier.weight, weights["classifier.weight"])
    for model in ("tf_efficientnet_lite1", "resnet18"):
        with torch.device("meta"):
            other = build(model, num_classes=1000, img_size=224, drop_path=0.0, extra={})
        error = refusal(load_weights, other, weights, source=LITE0.name)
        assert error.startswith(f"tf_efficientnet_lite0.safetensors does not fit {model}: ")
