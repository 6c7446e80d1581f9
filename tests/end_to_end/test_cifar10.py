"""benchmarks/cifar10.py and views.py run at toy size, on generated images, and what is trained is not trained again.

Slow: twelve trainings, then seven, each of six steps.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def add_images(tar: tarfile.TarFile, folder: str, count: int, colour: np.ndarray, random: np.random.Generator) -> None:
    for number in range(count):
        coarse = np.clip(random.normal(colour, 60, (6, 6, 3)), 0, 255).astype(np.uint8)
        data = io.BytesIO()
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(data, "JPEG")
        member = tarfile.TarInfo(f"{folder}/{number:04d}.jpg")
        member.size = data.tell()
        data.seek(0)
        tar.addfile(member, data)


@pytest.fixture
def images(tmp_path) -> Path:
    random = np.random.default_rng(0)
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name in ("cat", "dog", "ship"):
            colour = random.integers(0, 255, 3)
            add_images(tar, f"train/{name}", 10, colour, random)
            add_images(tar, f"test/{name}", 6, colour, random)
    return tmp_path / "images.tar"


def run(script: str, images: Path) -> tuple[dict, str, str]:
    folder = images.parent
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--images", str(images), "--profile", "toy"]
    done = subprocess.run(
        [*command, "--work", str(folder / "work"), "--out", str(folder / "out"), "--jobs", "0"],
        check=True, text=True, capture_output=True, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DEIT_COMMIT": "tested"},
    )  # fmt: skip
    record = json.loads((folder / f"out/{script}.json").read_text())
    return record, (folder / f"out/{script}.md").read_text(), done.stderr


def test_every_row_and_line_is_trained_once_and_written_down(images):
    record, page, _ = run("cifar10", images)
    assert record["images"] == {"train": 30, "val": 18} and set(record["trainings"]) == set(record["planned"])
    assert len(record["planned"]) == 12 and all(one["done"] for one in record["trainings"].values())
    assert set(record["trainings"]["token-2"]["top1"]["2"]) == {"class", "distillation", "fused"}
    assert set(record["trainings"]["none-0"]["top1"]) == {"1", "2"}
    assert record["label"]["decisions"] == 60 and set(record["tokens"]) == {"token", "two-class-tokens"}
    assert record["disagreement"]["rates"]["truth"]["truth"] == 0
    assert all("points" in claim for claim in record["claims"]) and "not run" not in page
    assert str(images.parent) not in page + json.dumps(record)
    assert Image.open(images.parent / "out/cifar10.png").width > 1000
    found, page, said = run("views", images)
    again = json.loads((images.parent / "out/cifar10.json").read_text())
    assert again | {"command": ""} == record | {"command": ""} and "train none-0" not in said
    assert "not run" not in page and len(found["lines"]) == 7 and all(one["top1"] for one in found["lines"])
    (selected,) = [one for one in found["lines"] if one["selected"]]
    assert selected["margin"] > 0 and selected["store"] == "topk"
    assert {one["store"]: one["decisions"] for one in found["lines"] if one["views"] == 2} == dict.fromkeys(
        ("hard", "topk", "compact", "sampled"), 60
    )
    metrics = (images.parent / "work/runs/selected-2-views/metrics.jsonl").read_text()
    assert not metrics or 0 < json.loads(metrics.splitlines()[-1])["kept_decisions"] < 1
