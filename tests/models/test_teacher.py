"""A teacher is one network or the mean of several, says what it is, and fails in one line or not at all."""

from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.v2 import InterpolationMode, functional

from pipeline.commands import run as stages
from pipeline.commands.label import _outside
from schemas.config import TeacherConfig as Settings
from stages.models.classifier import Heads
from stages.models.teacher import Teacher
from stages.models.weights import outside_data
from stages.replay.mix import Mix, mix, normalise
from stages.storage.commit import valid_receipts
from stages.storage.store import Store
from tests.support.world import TINY_VIT, silent

VIEWS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8))
MIX = Mix(torch.linspace(0.2, 0.9, 6), torch.linspace(0.2, 0.9, 6), torch.zeros(6, 4, dtype=torch.int32))
MODELS = {"deit_tiny_patch16_224": TINY_VIT, "resnet18": {}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Model → a file of its random weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, extra in MODELS.items():
        size = {"img_size": 32} if extra else {}
        model = timm.create_model(name, num_classes=4, **extra, **size)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in MODELS}


@pytest.fixture
def teacher(weights):
    """A teacher of one model, or of several."""

    def make(*models, **settings):
        one = len(models) == 1
        values = {
            "model": models[0] if one else models,
            "checkpoint": weights[models[0]] if one else tuple(weights[name] for name in models),
            "extra": MODELS[models[0]] if one else tuple(MODELS[name] for name in models),
        }
        made = Settings(**values | settings)
        return Teacher(made, workspace="", num_classes=4, image_size=32, device=torch.device("cpu"))

    return make


def test_a_mixture_is_the_mean_of_softmaxes_each_normalised_its_own_way(teacher):
    mixture = teacher(*MODELS)
    mixture.models[1].mean, mixture.models[1].std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    resnet = teacher("resnet18")
    resnet.models[0].mean, resnet.models[0].std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    alone = [teacher("deit_tiny_patch16_224").logits(VIEWS, MIX), resnet.logits(VIEWS, MIX)]
    mean = (alone[0].softmax(1) + alone[1].softmax(1)) / 2
    torch.testing.assert_close(mixture.logits(VIEWS, MIX), mean.log())
    assert (mean - alone[0].softmax(1)).abs().max() > 0.01
    assert mixture.identity()["mean"][1] == [0.5, 0.5, 0.5]


def test_a_mixtures_identity_names_every_member_in_order(teacher):
    one, other = teacher(*MODELS).identity(), teacher(*reversed(MODELS)).identity()
    assert one["weights_sha256"] == other["weights_sha256"][::-1] != other["weights_sha256"]
    single = teacher("resnet18").identity()
    assert single["weights_sha256"] == one["weights_sha256"][1]
    assert single["model"] == "resnet18" and single["mean"] == list(teacher("resnet18").models[0].mean)


@pytest.fixture(scope="module")
def bound(tmp_path_factory):
    """A small network whose weights fit 224 pixels and nothing else, by settings of a member."""
    extra = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = timm.create_model("beit_base_patch16_224", num_classes=4, **extra)
    path = tmp_path_factory.mktemp("bound") / "beit.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return model.eval(), {"model": "beit_base_patch16_224", "checkpoint": str(path), "extra": extra}


def resized(side, mean, std):
    """The mixed views as a network with these constants takes them, by torchvision's own resize."""
    mixed = mix(normalise(VIEWS, mean, std), MIX)
    return functional.resize(mixed, [side, side], InterpolationMode.BICUBIC, antialias=True)


def test_members_of_a_mixture_take_the_mixed_views_each_at_its_own_size(teacher, weights, bound):
    network, member = bound
    both = {key: (value, member[key]) for key, value in
            {"model": "resnet18", "checkpoint": weights["resnet18"], "extra": {}}.items()}  # fmt: skip
    mixture = teacher("resnet18", **both)
    assert mixture.sides == mixture.identity()["side"] == [32, 224]
    with torch.inference_mode():
        own = network(resized(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))).softmax(1)
    mean = (teacher("resnet18").logits(VIEWS, MIX).softmax(1) + own) / 2
    torch.testing.assert_close(mixture.logits(VIEWS, MIX), mean.log(), rtol=1e-4, atol=1e-4)


def test_any_network_sees_the_views_at_the_size_that_is_asked_for_and_says_so(teacher):
    plain, larger = teacher("resnet18"), teacher("resnet18", input_size=64)
    with torch.inference_mode():
        expected = larger.models[0](resized(64, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)).fused
    torch.testing.assert_close(larger.logits(VIEWS, MIX), expected)
    assert (plain.logits(VIEWS, MIX) - expected).abs().max() > 0.01
    said = [{key: one.identity()[key] for key in ("input_size", "side")} for one in (plain, larger)]
    assert said == [{"input_size": 0, "side": 32}, {"input_size": 64, "side": 64}]


def test_a_transformer_whose_positions_can_be_resampled_takes_the_views_as_they_are(teacher, bound, tmp_path):
    network = timm.create_model("deit_tiny_patch16_224", num_classes=4, img_size=64, **TINY_VIT)
    save_file(network.state_dict(), tmp_path / "at-64.safetensors")
    assert teacher("deit_tiny_patch16_224", checkpoint=str(tmp_path / "at-64.safetensors")).sides == [32]


def test_weights_that_fit_neither_the_views_nor_the_networks_own_size_are_refused(teacher, bound, refused):
    line = refused(teacher, "resnet18", **bound[1] | {"extra": bound[1]["extra"] | {"embed_dim": 48}})
    assert "does not fit beit_base_patch16_224" in line
    assert "does not fit" in refused(teacher, "resnet18", **bound[1], input_size=32)


def test_the_stage_says_which_network_sees_resized_views_and_tells_the_labels_apart(copied, refused):
    lines: list[str] = []
    stages.label(copied({"labels": {"name": "larger"}, "teacher": {"input_size": 48}}), lines.append)
    assert lines[0] == "deit_tiny_patch16_224 sees the views of 32 pixels resized to 48"
    assert lines[1].startswith(
        "teacher deit_tiny_patch16_224 on cpu: fp32, not compiled, batches of 16, 0 data processes"
    )
    line = refused(stages.label, copied_with(copied(), "larger"), silent, code=4)
    assert "teacher.input_size: 48 -> 0" in line


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "resnet18", "input_size": (224,)},
        {"model": ("resnet18", "resnet34"), "input_size": (224,)},
        {"model": "resnet18", "input_size": -1},
        {"model": "resnet18", "input_size": True},
        {"model": "resnet18", "checkpoint": ("a.pth",)},
        {"model": ("resnet18", "resnet34"), "checkpoint": ("a.pth",)},
        {"model": ("resnet18", "resnet34"), "checkpoint": "a.pth"},
        {"model": ("resnet18", "resnet34"), "extra": ({},)},
        {"model": 3},
        {"model": ()},
        {"model": "resnet18", "extra": 3},
    ],
)
def test_lists_that_do_not_go_together_are_refused_with_their_key(fresh, settings, refused):
    line = refused(fresh, {"teacher": {"extra": {}, "checkpoint": ""} | settings})
    assert line.startswith("test: teacher.") and "list" in line


@pytest.mark.parametrize(("room", "batch"), [(12, None), (11, 6), (5, 2), (2, 2)])
def test_a_batch_beyond_memory_is_halved_until_it_fits_and_says_the_same(teacher, monkeypatch, room, batch):
    expected = teacher("resnet18").logits(VIEWS, MIX)
    small, sizes = teacher("resnet18"), []

    def cramped(_, given):
        sizes.append(len(given[0]))
        if len(given[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    small.models[0].register_forward_pre_hook(cramped)
    torch.testing.assert_close(small.logits(VIEWS, MIX), expected)
    assert small.batch == batch
    sizes.clear()
    small.logits(VIEWS, MIX)
    assert max(sizes) <= room and len(set(sizes)) == 1  # it is not tried again


def test_what_a_batch_was_halved_to_is_in_the_receipt(copied, monkeypatch):
    run = copied({"labels": {"name": "small"}})
    whole = Teacher._member_logits

    def cramped(self, nth, views, how):
        if len(views) > 8:
            raise RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory")
        return whole(self, nth, views, how)

    monkeypatch.setattr(Teacher, "_member_logits", cramped)
    stages.label(run, silent)
    receipts = valid_receipts(Store(run.workspace).child("labels/small"))
    assert {receipt.facts["forward_batch"] for receipt in receipts.values()} == {8}


def test_a_pair_beyond_memory_is_one_line(teacher, refused):
    small = teacher("resnet18")

    def cramped(_, given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    small.models[0].register_forward_pre_hook(cramped)
    assert "not even one pair of views fits the cpu's memory" in refused(small.logits, VIEWS, MIX)


def test_any_other_failure_of_the_teacher_is_not_taken_for_want_of_memory(teacher):
    broken = teacher("resnet18")

    def forward(_, given):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken.models[0].register_forward_pre_hook(forward)
    with pytest.raises(RuntimeError, match="mat1"):
        broken.logits(VIEWS, MIX)


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("weight", 3e38, "gave a logit that is not finite"),
        ("bias", float("nan"), "head.bias holds numbers that are not finite"),
        ("bias", float("-inf"), "head.bias holds numbers that are not finite"),
    ],
)
def test_what_is_not_finite_stops_the_stage_with_nothing_done(copied, tmp_path, refused, part, value, says):
    file = tmp_path / "bad.safetensors"
    run = copied({"labels": {"name": "bad"}, "teacher": {"checkpoint": str(file)}})
    model = timm.create_model("deit_tiny_patch16_224", num_classes=4, img_size=32, **TINY_VIT)
    getattr(model.head, part).data[0] = value
    save_file(model.state_dict(), file)
    assert says in refused(stages.label, run, silent)
    assert not valid_receipts(Store(run.workspace).child("labels/bad"))


def test_logits_of_a_wrong_shape_are_one_line(teacher, refused):
    wrong = teacher("resnet18")
    wrong.models[0].register_forward_hook(lambda *_: Heads(torch.zeros(12, 5), None))
    line = refused(wrong.logits, VIEWS, MIX)
    assert line == ("teacher.model = resnet18: gave logits of shape (12, 5), expected (12, 4); check teacher.extra")


def test_the_authors_checkpoint_is_the_teacher_that_its_model_table_holds(teacher, weights, tmp_path):
    path = tmp_path / "regnety.pth"
    torch.save({"model": load_file(weights["resnet18"]), "epoch": 299, "args": Namespace(lr=1)}, path)
    theirs, same = teacher("resnet18", checkpoint=str(path)), teacher("resnet18")
    assert theirs.weights_sha256 == same.weights_sha256
    assert torch.equal(theirs.logits(VIEWS, MIX), same.logits(VIEWS, MIX))


def test_a_teacher_of_other_classes_than_the_shards_is_refused_before_anything_is_stored(copied, tmp_path, refused):
    five = timm.create_model("deit_tiny_patch16_224", num_classes=5, img_size=32, **TINY_VIT)
    save_file(five.state_dict(), tmp_path / "five.safetensors")
    run = copied({"labels": {"name": "five"}, "teacher": {"checkpoint": str(tmp_path / "five.safetensors")}})
    line = refused(stages.label, run, silent)
    assert "head.weight is (5, 48), expected (4, 48)" in line
    assert line.endswith("name the model and the classes that these weights were trained for")
    assert not Path(run.workspace, "labels/five").exists()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_the_network_computes_in_its_precision_channels_last_and_answers_in_fp32(teacher, precision, dtype):
    made, seen = teacher("resnet18", precision=precision), []
    made.models[0].model.layer1.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    logits = made.logits(VIEWS, MIX)
    ((given, out),) = seen
    assert out.dtype == getattr(torch, dtype) and logits.dtype == torch.float32
    for tensor in (given, out, made.models[0].model.conv1.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()
    torch.testing.assert_close(logits, teacher("resnet18").logits(VIEWS, MIX), rtol=0.05, atol=0.05)


def test_compiling_runs_the_compiled_network_decides_the_same_and_is_part_of_the_identity(teacher, monkeypatch):
    ran = []

    def backend(graph, inputs):
        def run(*given):
            ran.extend(len(one) for one in given if isinstance(one, torch.Tensor) and one.shape[1:] == (3, 32, 32))
            return graph(*given)

        return run

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled, plain = teacher("resnet18", compile=True, batch_size=12), teacher("resnet18")
    for batch, how in ((VIEWS, MIX), (VIEWS[:8], Mix(*(one[:4] for one in MIX))), (VIEWS[:7], None)):
        torch.testing.assert_close(compiled.logits(batch, how), plain.logits(batch, how))
    assert ran == [12, 12, 12]  # smaller batches are padded, since each shape is compiled anew
    assert (compiled.identity()["compile"], plain.identity()["compile"]) == (True, False)


@pytest.mark.parametrize(
    ("model", "tag"),
    [
        ("regnety_160", "sw_in12k_ft_in1k"),
        ("regnety_160.deit_in1k", ""),
        ("regnety_160.sw_in12k_ft_in1k", ""),  # chosen
        ("convnext_base", "fb_in22k_ft_in1k"),
        ("resnet50", ""),
        ("deit_base_patch16_224", ""),
        ("tf_efficientnet_lite0", ""),
        ("vit_base_patch14_dinov2", "lvd142m"),
    ],
)
def test_a_plain_name_whose_weights_saw_other_data_is_known(model, tag):
    assert outside_data(model) == tag


def test_a_plain_name_is_warned_of_once_and_a_local_file_never(fresh):
    plain = fresh({"teacher": {"model": ("regnety_160", "resnet50"), "checkpoint": "", "extra": {}}})
    (line,) = _outside(plain)
    assert line.startswith("warning: teacher.model = regnety_160 stands for regnety_160.sw_in12k_ft_in1k")
    assert not list(_outside(fresh({"teacher": {"model": "regnety_160", "checkpoint": "mine.pth", "extra": {}}})))


def test_labels_of_a_mixture_are_made_and_told_from_a_single_ones(copied, refused):
    members = {"model": ("deit_tiny_patch16_224",) * 2, "checkpoint": ("run:teacher",) * 2}
    mixture = copied({"labels": {"name": "mixture"}, "teacher": members})
    assert stages.label(mixture, silent)["decisions"] == 360
    assert "teacher.model" in refused(stages.label, copied_with(mixture, "teacher"), silent, code=4)


def copied_with(run, labels):
    return run.model_copy(update={"labels": run.labels.model_copy(update={"name": labels})})
