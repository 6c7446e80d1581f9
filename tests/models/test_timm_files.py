"""Any timm classifier, and weight files as timm itself leaves and loads them."""

import json
import math
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import ModelEmaV3

from schemas.errors import UserError
from stages.models.classifier import build
from stages.models.state_dict import load_weights
from stages.models.tensors import to_bytes
from stages.models.weight_file import read_weights
from stages.models.weights import find_weights
from stages.train.optim import build_optimizer


def built(model: str, side: int = 64, **extra):
    return build(model, num_classes=4, img_size=side, drop_path=0.0, extra=extra)


@pytest.mark.parametrize("model", ["xcit_nano_12_p16_224", "efficientvit_m0", "coat_tiny"])
def test_networks_with_odd_parts_train_and_are_saved_and_loaded(model):
    student = built(model)
    average = ModelEmaV3(student.model, decay=0.9, foreach=True)
    student.train()(torch.randn(2, 3, 64, 64)).classes.sum().backward()
    average.update(student.model)
    tensors = student.model.state_dict()
    assert len(to_bytes(tensors)) > sum(one.nbytes for one in tensors.values())
    load_weights(built(model), tensors, source="its own")


def test_outputs_that_are_no_logits_of_the_classes_are_refused():
    with pytest.raises(UserError, match=r"gives .* for one image, expected logits of shape \(1, 4\)"):
        built("test_vit", side=160, global_pool="", class_token=False)


@pytest.mark.parametrize("key", ["cache_dir", "pretrained_cfg_overlay", "scriptable"])
def test_arguments_that_are_not_the_networks_are_refused(key):
    with pytest.raises(UserError, match=f"{key} is not free"):
        built("test_resnet", **{key: "x"})


def test_patches_that_are_no_squares_are_checked_along_both_sides():
    tiny = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    with pytest.raises(UserError, match="patches of 8 x 16 pixels; give a multiple, such as 32 or 48"):
        built("deit_tiny_patch16_224", side=40, patch_size=(8, 16), **tiny)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return built("test_resnet").model.state_dict()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", [".pth.tar", ".pth"])
def test_prefixes_of_wrappers_are_removed(weights, tmp_path, prefix, suffix):
    path = tmp_path / f"last{suffix}"
    torch.save({"epoch": 3, "arch": "test_resnet", "state_dict": {prefix + k: v for k, v in weights.items()}}, path)
    load_weights(built("test_resnet"), read_weights(path), source=str(path))


def test_it_is_said_which_of_raw_and_averaged_weights_were_taken(weights, tmp_path):
    average = {name: one + 1 for name, one in weights.items()}
    cases = {
        "both": ({"state_dict": weights, "state_dict_ema": average}, "raw weights", weights),
        "authors": ({"model": weights, "model_ema": average}, "raw weights", weights),
        "only": ({"state_dict_ema": average}, "no raw weights", average),
        "plain": ({"model": weights}, "", weights),
    }
    for name, (file, note, expected) in cases.items():
        torch.save(file, tmp_path / f"{name}.pth")
        found, student = read_weights(tmp_path / f"{name}.pth"), built("test_resnet")
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        load_weights(student, found, source=name)
        assert note in student.weights_note and bool(note) == bool(student.weights_note)


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("sparse", torch.eye(4).to_sparse()),
        ("without data", torch.empty(4, 4, device="meta")),
        ("quantised", torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_refused_by_name(tmp_path, kind, tensor):
    torch.save({"model": {"cls_token": torch.ones(1), "head.weight": tensor}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth: head\.weight is {kind}"):
        read_weights(tmp_path / "w.pth")


def test_a_sharded_checkpoint_is_read_through_its_index_and_pickled_parts_by_the_advice(weights, tmp_path, monkeypatch):
    names = sorted(weights)
    parts = {f"model-0000{nth}-of-00002": names[nth - 1 :: 2] for nth in (1, 2)}
    for part, own in parts.items():
        save_file({name: weights[name] for name in own}, tmp_path / f"{part}.safetensors")
        torch.save({name: weights[name] for name in own}, tmp_path / f"{part}.bin")
    where = {name: f"{part}.safetensors" for part, own in parts.items() for name in own}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    load_weights(built("test_resnet"), read_weights(index), source="parts")
    assert all(torch.equal(read_weights(index)[name], weights[name]) for name in names)
    with pytest.raises(UserError, match=r"such as model\.safetensors\.index\.json"):
        read_weights(tmp_path)
    with pytest.raises(UserError, match=r"one part of several; name the \.safetensors\.index\.json") as caught:
        read_weights(tmp_path / "model-00001-of-00002.bin")
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).partition("join once: ")[2], {"torch": torch, "FILES": sorted(tmp_path.glob("*.bin"))})
    load_weights(built("test_resnet"), read_weights("weights.pth"), source="joined")
    index.write_text(json.dumps({"weight_map": where | {"more": where[names[0]]}}))
    with pytest.raises(UserError, match="no part of it has more"):
        read_weights(index)
    (tmp_path / where[names[0]]).unlink()
    with pytest.raises(UserError, match=r"index\.json: cannot be read"):
        read_weights(index)


def test_googles_archives_are_read_once_converted_as_the_error_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = {"embed_dim": 48, "depth": 0, "num_heads": 3, "num_classes": 4, "img_size": 32}
    first = timm.create_model("vit_tiny_patch16_224", **tiny).state_dict()
    np.savez(
        "google.npz",
        **{
            "cls": first["cls_token"],
            "embedding/kernel": first["patch_embed.proj.weight"].permute(2, 3, 1, 0),
            "embedding/bias": first["patch_embed.proj.bias"],
            "Transformer/posembed_input/pos_embedding": first["pos_embed"],
            "Transformer/encoder_norm/scale": first["norm.weight"],
            "Transformer/encoder_norm/bias": first["norm.bias"],
            "head/kernel": first["head.weight"].T,
            "head/bias": first["head.bias"],
        },
    )
    with pytest.raises(UserError, match="convert it once with timm") as caught:
        read_weights("google.npz")
    advice = str(caught.value).partition("with timm: ")[2].replace("NAME", "'vit_tiny_patch16_224', **tiny")
    exec(advice.replace("FILE", "'google.npz'"), {"timm": timm, "torch": torch, "tiny": tiny})
    assert all(torch.equal(one, first[name]) for name, one in read_weights("weights.pth").items())


def test_counts_of_batches_that_a_file_lacks_begin_at_nothing(weights):
    load_weights(built("test_resnet"), {k: v for k, v in weights.items() if "num_batches" not in k}, source="old")
    with pytest.raises(UserError, match="running_mean is missing"):
        load_weights(built("test_resnet"), {k: v for k, v in weights.items() if "running_mean" not in k}, source="x")


OLD = {
    "deit3_small_patch16_224": lambda name: name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"),
    "swin_tiny_patch4_window7_224": lambda name: re.sub(
        r"layers\.(\d)\.down", lambda at: f"layers.{int(at[1]) - 1}.down", name.replace("head.fc.", "head.")
    ),
}
ADDED = {
    "deit3_small_patch16_224": {"pre_logits.fc.weight": torch.zeros(2, 2)},
    "swin_tiny_patch4_window7_224": {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(2)},
}
SMALL = {
    "deit3_small_patch16_224": {"embed_dim": 48, "depth": 1, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
}


@pytest.mark.parametrize("model", OLD)
def test_old_names_are_read_by_the_architectures_own_filter(model):
    first, second = built(model, 224, **SMALL[model]), built(model, 224, **SMALL[model])
    old = {OLD[model](name): one for name, one in first.model.state_dict().items()}
    assert old.keys() != first.model.state_dict().keys()
    load_weights(second, old | ADDED[model], source="old")
    for name, one in first.model.state_dict().items():
        assert torch.equal(one, second.model.state_dict()[name])


def test_patches_of_another_size_are_another_model_and_not_resampled():
    small = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    source = built("deit_tiny_patch16_224", patch_size=16, **small).model.state_dict()
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight is .*16, 16"):
        load_weights(built("deit_tiny_patch16_224", patch_size=8, **small), source, source="x")


@pytest.mark.parametrize("name", ["../runs/s", "", "a/b", "..", "/tmp/x"])
def test_a_run_outside_of_the_workspace_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="must be a folder name"):
        find_weights(f"run:{name}", str(tmp_path), "teacher.checkpoint")


def test_what_a_model_wants_undecayed_is_spared_and_the_distillation_token_is_decayed():
    swin = built("swinv2_tiny_window8_256", 64, embed_dim=12, depths=(1, 1), num_heads=(1, 2), window_size=4).model
    spared = {
        id(one)
        for one in build_optimizer(swin, optimizer="adamw", weight_decay=0.1, fused=False).param_groups[1]["params"]
    }
    named = dict(swin.named_parameters())
    assert all(id(one) in spared for name, one in named.items() if "logit_scale" in name or "cpb_mlp" in name)
    assert id(named["layers.0.blocks.0.attn.qkv.weight"]) not in spared
    deit = built("deit_tiny_distilled_patch16_224", 32, embed_dim=48, depth=1, num_heads=3).model
    decayed = build_optimizer(deit, optimizer="adamw", weight_decay=0.1, fused=False).param_groups[0]["params"]
    assert any(one is deit.dist_token for one in decayed) and not any(one is deit.cls_token for one in decayed)


_REFUSED = {"vit_so400m_patch14_siglip_384", "vit_so400m_patch14_siglip_gap_384"}


def refused_of(models):
    """The names of those that are refused, each in a line of its own; the others are built on torch's meta device."""
    refused = set()
    for model in models:
        side = max(
            timm.get_pretrained_cfg(model, allow_unregistered=True).input_size[1:]
            if timm.get_pretrained_cfg(model, allow_unregistered=True)
            else (224,)
        )
        try:
            with torch.device("meta"):
                student = build(model, num_classes=7, img_size=side, drop_path=0.0, extra={})
        except UserError as error:
            assert "\n" not in str(error) and model in str(error)
            refused.add(model)
        else:
            assert math.isfinite(sum(one.numel() for one in student.parameters()))
    return refused


def test_of_timms_classifiers_some_of_each_kind_are_built_or_refused():
    built_ = {"test_vit", "test_resnet", "test_efficientnet", "resnet18", "mobilenetv3_small_050"}
    assert refused_of(built_ | {"vit_so400m_patch14_siglip_384"}) == {"vit_so400m_patch14_siglip_384"}


@pytest.mark.thorough
def test_every_classifier_of_timm_is_built_or_refused_in_a_line():
    """Some 1,300 networks: slow because there are so many. Real ones: as they are chosen."""
    refused = refused_of(timm.list_models())
    assert {one for one in refused if not one.endswith("_enc")} == _REFUSED
    assert len(refused) < 12, "encoders of language models, which give tokens and no logits"
