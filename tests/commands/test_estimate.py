"""`estimate`: measures with few images, writes nothing into the workspace, says what it assumes."""

import json
from pathlib import Path

import pytest

from stages.estimate.timing import batch_cost
from tests.support.command_line import complaint, typed, written
from tests.support.world import ROOT


@pytest.fixture(scope="module")
def estimated(images, tmp_path_factory):
    """The lines and the object of an estimate before anything is stored."""
    from tests.support.world import run_file

    folder = tmp_path_factory.mktemp("estimate")
    config = run_file(folder / "workspace", images)
    code, out, err = typed("estimate", "-c", written(config, folder), "--seconds", "1", "--price", "3", "--json")
    assert code == 0, err
    return config, json.loads(out.splitlines()[-1]), err, sorted(path.name for path in folder.iterdir())


def test_it_tells_hours_bytes_cores_and_price_of_every_stage(estimated):
    _, found, lines, _ = estimated
    assert list(found["stages"]) == ["shard", "label-teacher", "train", "evaluate"]
    assert (found["images"], found["val_images"], found["classes"], found["shards"]) == (61, 20, 4, 3)
    assert found["stages"]["label-teacher"]["units"] == 360
    assert all(one["core_hours"] > 0 for one in found["stages"].values())
    assert found["price"]["total"] == pytest.approx(3 * found["device_hours"])
    assert set(found["cores_a_device"]) == {"train", "label-teacher"}
    assert "price at 3" in lines and lines.count("assumed: ") == len(found["assumptions"]) > 4


def test_it_tells_what_other_settings_save(estimated):
    _, found, _, _ = estimated
    changes = [one["change"] for one in found["savings"]]
    assert changes == [
        "labels.views = 2, train.reuse_views = true",
        'teacher.precision = "bf16"',
        'train.precision = "bf16"',
        "cache.decoded = true",
    ]
    assert found["savings"][0]["bytes"] > 0


def test_it_leaves_nothing_behind(estimated):
    config, _, _, left = estimated
    assert left == ["deit.toml"] and not Path(config.workspace).exists()


def test_shards_that_are_there_are_counted_as_they_are(whole, tmp_path):
    before = sorted(Path(whole.workspace).rglob("*"))
    code, out, err = typed("estimate", "-c", written(whole, tmp_path), "--seconds", "1", "--json")
    assert code == 0, err
    tars = sum(file.stat().st_size for file in Path(whole.workspace, "shards/train").glob("*.tar"))
    assert tars <= json.loads(out)["bytes"]["shard"] < 2 * tars
    assert sorted(Path(whole.workspace).rglob("*")) == before


def test_a_device_elsewhere_and_images_to_come(fresh, tmp_path):
    file = written(fresh({"source": {"train": "", "val": ""}}), tmp_path)
    rates = str(ROOT / "docs" / "evidence" / "gpu-nvidia-h200.json")
    code, out, err = typed("estimate", "-c", file, "--rates", rates, "--images", "5000", "--seconds", "1", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["device"], found["images"]) == ("NVIDIA H200", 5000)
    assert any("not measured" in one for one in found["assumptions"])


def test_without_images_it_says_how_to_go_on(fresh, tmp_path):
    assert "--images N" in complaint(
        1, "estimate", "-c", written(fresh({"source": {"train": "", "val": ""}}), tmp_path)
    )


def test_a_batch_is_a_fixed_share_and_one_for_each_view():
    def make(count):
        return lambda: sum(range(200_000 + 100_000 * count))

    found = batch_cost(make, 64, 1.0, "cpu", threads=1)
    assert 8 <= found.batch <= 64
    assert found.fixed.seconds == pytest.approx(2 * found.each.seconds, rel=0.8)
    assert found.per_view(10).seconds == pytest.approx(found.each.seconds + found.fixed.seconds / 10)
