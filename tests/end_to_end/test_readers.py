"""Others read the shards as they are: webdataset, timm, wids, and DALI by the index that its wds2idx makes."""

import json
import tarfile
from itertools import groupby
from pathlib import Path

import pytest
import webdataset as wds
from timm.data.readers.reader_wds import ReaderWds

from tests.support.world import CLASSES

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(whole) -> Path:
    return Path(whole.workspace, "shards/train")


def originals(whole) -> dict[str, bytes]:
    root = Path(whole.source.train)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")}


def test_webdataset_reads_every_image_with_its_class_and_name(whole, folder):
    tars = sorted(str(tar) for tar in folder.glob("*.tar"))
    samples = list(wds.WebDataset(tars, shardshuffle=False, empty_check=False))
    found = {json.loads(sample["json"])["name"]: sample for sample in samples}
    assert found.keys() == originals(whole).keys() and len(samples) == 61
    for name, data in originals(whole).items():
        assert CLASSES[int(found[name]["cls"])] == name.split("/")[0]
        assert found[name]["png" if name.endswith("png") else "jpg"] == data
        assert "." not in found[name]["__key__"]


def test_timms_reader_finds_split_length_and_classes_through_its_info_file(whole, folder):
    reader = ReaderWds(str(folder), split="train", input_key="jpg;png")
    assert len(reader) == 61
    read = [target for _, target in reader]
    expected = [CLASSES.index(name.split("/")[0]) for name in originals(whole)]
    assert sorted(read) == sorted(expected)


def test_wids_reads_samples_at_random_through_its_index(whole, folder, tmp_path):
    wids = pytest.importorskip("wids", reason="webdataset before 1.0 brings it")
    dataset = wids.ShardListDataset(
        str(folder / "wids.json"), base=str(folder), cache_dir=str(tmp_path), transformations=[]
    )
    assert len(dataset) == 61
    read = {json.loads(dataset[row][".json"].read())["name"]: dataset[row] for row in range(61)}
    for name, data in originals(whole).items():
        assert read[name][".png" if name.endswith("png") else ".jpg"].read() == data


def test_the_wids_index_names_every_tar_with_its_samples_and_length(folder):
    index = json.loads((folder / "wids.json").read_text())
    assert index["wids_version"] == 1
    for shard, tar in zip(index["shardlist"], sorted(folder.glob("*.tar")), strict=True):
        with tarfile.open(tar) as opened:
            keys = {name.split(".")[0] for name in opened.getnames()}
        assert shard == {"url": tar.name, "nsamples": len(keys), "filesize": tar.stat().st_size}


def test_every_component_is_where_dalis_index_says(whole, folder):
    """DALI's wds2idx names a component by extension, offset, size and name, and groups neighbours with one key."""
    for tar in folder.glob("*.tar"):
        data = tar.read_bytes()
        assert data[257:263] == b"ustar\0"
        with tarfile.open(tar) as opened:
            members = [member for member in opened if member.isreg()]
        keys = [key for key, _ in groupby(members, key=lambda member: member.name.partition(".")[0])]
        assert len(keys) == len(set(keys)) == len(members) / 3
        for member in members:
            assert member.offset_data % 512 == 0 and " " not in member.name
            if member.name.endswith(".cls"):
                assert data[member.offset_data : member.offset_data + member.size].isdigit()
