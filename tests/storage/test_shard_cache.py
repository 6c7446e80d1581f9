"""Shards on an object store are read through copies on a local disk: the same batches, within a bound."""

import hashlib
from pathlib import Path

from schemas.config import CacheConfig
from stages.data.split import Split
from stages.label.label_set import LabelSet
from stages.replay.order import Stream
from stages.storage import shard_cache as cache_module
from stages.storage.shard_cache import ShardCache
from stages.storage.store import Store
from stages.train.dataset import TrainDataset
from tests.support.world import stored


def remote(whole, bucket, settings: CacheConfig) -> Split:
    for name, data in stored(Path(whole.workspace)).items():
        Store(bucket("ws")).put(name, data)
    return Split.open(bucket("ws"), "train", settings)


def test_training_reads_the_same_batches_through_a_cache_that_never_grows_beyond_its_bound(bucket, whole, tmp_path):
    local = Split.open(whole.workspace, "train")
    bound = sorted(local.tar(shard).bytes for shard in range(3))[-2:]
    settings = CacheConfig(folder=str(tmp_path / "cache"), gigabytes=(sum(bound) + 100) / 1e9)
    split = remote(whole, bucket, settings)
    steps = {}
    for name, one in (("local", local), ("remote", split)):
        stream = Stream(one.rows, repeats=2, window=2, recipe_seed=0, seed=0)
        steps[name] = TrainDataset(one, whole.views, stream, LabelSet.open(whole, local), batch=16, rank=0, world=1)
    largest = 0
    for step in range(6):
        assert (steps["remote"][step].views == steps["local"][step].views).all()
        largest = max(largest, sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()))
    assert 0 < largest <= sum(bound) + 100


def test_the_next_window_is_copied_before_it_is_read(bucket, whole, tmp_path):
    split = remote(whole, bucket, CacheConfig(folder=str(tmp_path / "cache"), gigabytes=1))
    split.expect([0], [2])
    split._cache._filler.join(30)
    names = {path.name for path in (tmp_path / "cache").glob("*.tar")}
    assert names == {f"{split.tar(shard).sha256}.tar" for shard in (0, 2)}
    Store(bucket("ws/shards/train")).delete("shard-000002.tar")
    assert split.image(2, 0) == Split.open(whole.workspace, "train").image(2, 0)


def test_a_window_that_does_not_fit_is_refused_with_what_to_change(bucket, whole, tmp_path, refused):
    split = remote(whole, bucket, CacheConfig(folder=str(tmp_path), gigabytes=1e-4))
    line = refused(split.expect, [0, 1, 2], [])
    assert line.startswith("cache.gigabytes = 0.0001: the 3 shards") and "lower train.window" in line
    tiny = ShardCache(Store(bucket("ws/shards/train")), CacheConfig(folder=str(tmp_path), gigabytes=1e-6))
    assert "one shard takes" in refused(tiny.read, split.tar(0), 1, 0)


def test_a_full_disk_is_one_line(bucket, whole, tmp_path, refused, monkeypatch):
    split = remote(whole, bucket, CacheConfig(folder=str(tmp_path), gigabytes=1))

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "posix_fallocate", full)
    line = refused(split.image, 0, 0)
    assert "(No space left on device); name a folder on a larger disk, or lower cache.gigabytes" in line
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []


def test_what_a_killed_process_left_half_copied_makes_room(bucket, whole, tmp_path):
    split = remote(whole, bucket, CacheConfig(folder=str(tmp_path), gigabytes=1e-3))
    (tmp_path / ".0.half").write_bytes(bytes(900_000))
    split.image(0, 0)
    assert not (tmp_path / ".0.half").exists()


def test_a_copy_that_was_damaged_or_cut_is_fetched_again(bucket, whole, tmp_path):
    split = remote(whole, bucket, CacheConfig(folder=str(tmp_path), gigabytes=1))
    true = split.image(0, 0)
    (copy,) = tmp_path.glob("*.tar")
    for damaged in (bytes(copy.stat().st_size), copy.read_bytes()[:700], b""):
        copy.write_bytes(damaged)
        assert split.image(0, 0) == true
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == copy.stem


def test_a_copy_with_other_bytes_than_the_receipt_is_never_kept(bucket, whole, tmp_path, refused):
    split = remote(whole, bucket, CacheConfig(folder=str(tmp_path), gigabytes=1))
    store = Store(bucket("ws/shards/train"))
    data = bytearray(store.read("shard-000000.tar"))
    data[700] ^= 1
    store.put("shard-000000.tar", bytes(data))
    assert "has other bytes than its receipt says" in refused(split.image, 0, 0)
    store.delete("shard-000001.tar")
    assert "shard-000001.tar: is missing; run" in refused(split.image, 1, 0)
    assert list(tmp_path.glob("*.tar")) == []
