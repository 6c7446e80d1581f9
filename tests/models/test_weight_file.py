"""Files of weights as others write them: found by their bytes, the table that is meant, and what a file is instead."""

import argparse
import gzip
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stages.models.classifier import Classifier, build
from stages.models.state_dict import load_weights
from stages.models.weight_file import read_weights

SMALL = {"embed_dim": 12, "depth": 1, "num_heads": 1}


def built(num_classes: int = 3) -> Classifier:
    return build("deit_tiny_patch16_224", num_classes=num_classes, img_size=16, drop_path=0.0, extra=SMALL)


@pytest.fixture(scope="module")
def source() -> Classifier:
    torch.manual_seed(0)
    return built()


def prefixed(tensors: dict, prefix: str) -> dict:
    return {prefix + name: one for name, one in tensors.items()}


TABLES = {
    "net": (lambda s: {"net": s, "acc": 91.2, "epoch": 7}, "net, the only table"),
    "model_state_dict": (lambda s: {"model_state_dict": s, "optimizer": {"state": {}}}, "model_state_dict, the only"),
    "nested": (lambda s: {"checkpoint": {"model": s}}, "checkpoint, the only table"),
    "lightning": (
        lambda s: {"state_dict": prefixed(s, "model.") | {"loss.weight": torch.ones(2)}, "epoch": 1},
        "what is below model. and left 1 other tensors out",
    ),
    "backbone": (lambda s: prefixed(s, "backbone."), "what is below backbone."),
    "wrapped": (lambda s: {"state_dict": prefixed(s, "module.model.")}, "what is below model."),
    "averaged": (lambda s: {"n_averaged": torch.tensor(4)} | prefixed(s, "module."), "averaged weights"),
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_under_other_names_are_found_and_named(tmp_path, source, table):
    make, said = TABLES[table]
    torch.save(make(dict(source.model.state_dict())), tmp_path / "w.ckpt")
    target = built()
    load_weights(target, read_weights(tmp_path / "w.ckpt"), source="w.ckpt")
    assert said in target.weights_note
    for name, one in source.model.state_dict().items():
        assert torch.equal(one, target.model.state_dict()[name])


def test_the_bytes_and_not_the_suffix_say_which_format_it_is(tmp_path, source):
    tensors = dict(source.model.state_dict())
    save_file(tensors, tmp_path / "a.bin")
    torch.save(tensors, tmp_path / "b.safetensors")
    for name in ("a.bin", "b.safetensors"):
        assert read_weights(tmp_path / name).keys() == tensors.keys()


def test_weights_that_could_be_of_two_networks_are_refused(tmp_path, source, refused):
    tensors = dict(source.model.state_dict())
    torch.save({"net_a": tensors, "net_b": tensors}, tmp_path / "w.pth")
    assert "holds the tables net_a, net_b, and none is called model" in refused(read_weights, tmp_path / "w.pth")
    both = prefixed(tensors, "student.") | prefixed(tensors, "teacher.")
    torch.save(both, tmp_path / "w.pth")
    line = refused(load_weights, built(), read_weights(tmp_path / "w.pth"), source="w.pth")
    assert "holds several networks, student. and teacher." in line


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda one: (one * 9).to(torch.int8), "holds int8, as quantised"), (lambda one: one * torch.inf, "not finite")],
)
def test_weights_of_another_kind_or_not_finite_are_refused(source, refused, change, says):
    tensors = dict(source.model.state_dict())
    tensors["head.weight"] = change(tensors["head.weight"])
    assert f"head.weight holds {'numbers that are ' * ('finite' in says)}{says.removeprefix('holds ')}" in refused(
        load_weights, built(), tensors, source="w.pth"
    )


def test_half_precision_is_taken(source):
    load_weights(built(), {name: one.half() for name, one in source.model.state_dict().items()}, source="w.pth")


OTHER_FILES = {
    "w.pth": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    "w.bin": (b"<!DOCTYPE html><html>404", "is a web page or XML"),
    "w.pth.tar": (gzip.compress(b"x" * 99), "is compressed (gzip)"),
    "w.pt": (b"", "is empty"),
    "model-00001-of-00002.safetensors": (b"x", "one part of several"),
    "pytorch_model.bin.index.json": (b"{}", "one part of several"),
    "model.safetensors.index.json": (b"{}", "cannot be read"),
    "w.npz": (b"PK", "of JAX"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_a_file_is_instead_of_weights_is_said(tmp_path, refused, name):
    data, says = OTHER_FILES[name]
    (tmp_path / name).write_bytes(data)
    assert says in refused(read_weights, tmp_path / name)


def test_a_folder_names_the_file_in_it(tmp_path, refused):
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert refused(read_weights, tmp_path).endswith("such as model.safetensors")


def test_what_is_no_tensor_is_named(tmp_path, source, refused):
    torch.save(dict(source.model.state_dict()) | {"epoch": 3}, tmp_path / "w.pth")
    assert "epoch is int" in refused(read_weights, tmp_path / "w.pth")
    torch.save({"model": {}, "path": Path("x"), "best": np.float64(1)}, tmp_path / "w.pth")
    assert "(pickled objects), such as" in refused(read_weights, tmp_path / "w.pth")


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
def test_files_that_hold_no_weights_are_refused_in_one_line(tmp_path, name, write, complaint, refused):
    if write:
        write(tmp_path / name)
    assert complaint in refused(read_weights, tmp_path / name)
