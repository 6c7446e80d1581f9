"""Classifiers: sizes, first weights, heads, and arguments that are refused."""

import pytest
import timm
import torch
from torch import nn

from schemas.errors import UserError
from stages.models.classifier import build
from tests.support.students import TINY, tiny


def images(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


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
def test_an_image_that_patches_do_not_divide_is_refused(side, offers, refused):
    error = refused(build, "deit_tiny_patch16_224", num_classes=2, img_size=side, drop_path=0.0, extra={})
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


def test_drop_path_is_refused_where_the_model_has_none(refused):
    with torch.device("meta"):
        assert "student.drop_path" in refused(build, "vgg11", num_classes=2, img_size=32, drop_path=0.1, extra={})
        build("vgg11", num_classes=2, img_size=32, drop_path=0.0, extra={})


@pytest.mark.parametrize(
    "extra", [{"typo": 1}, {"embed_dim": 100, "num_heads": 3}, {"num_heads": 0}, {"pretrained": True}, {"img_size": 64}]
)
def test_a_wrong_extra_argument_is_refused(extra, refused):
    error = refused(build, "deit_tiny_patch16_224", num_classes=2, img_size=32, drop_path=0.0, extra=extra)
    assert error.startswith("extra = ") and next(iter(extra)) in error
