"""An object store is a store like any other: the same bytes, through errors and cut connections."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.commands import run as stages
from pipeline.commands.verify import verify
from schemas.manifests import ShardManifest
from stages.storage import file_systems
from stages.storage import store as store_module
from stages.storage.commit import valid_receipts
from stages.storage.manifest import read_manifest
from stages.storage.store import Store
from tests.support.proxy import WAYS, Proxy
from tests.support.world import PAIRS, command, killed_at_random, run_file, silent, start, stored

pytestmark = pytest.mark.slow


def objects(uri: str) -> dict[str, bytes]:
    """Path below the folder → bytes of every object."""
    store = Store(uri)
    base = urlsplit(uri).netloc + urlsplit(uri).path
    found = store._fs.get_file_info(store_module.pafs.FileSelector(base, recursive=True, allow_not_found=True))
    files = [info.path.removeprefix(f"{base}/") for info in found if info.is_file]
    return {name: store.read(name) for name in files}


@pytest.fixture
def spoilt(endpoint, monkeypatch):
    """A proxy for a share of spoilt requests; our own waits are short."""
    proxies = []
    monkeypatch.setattr(store_module, "_WAITS", (0.0,) * 3)

    def build(share: float, *ways: str, **more: Any) -> Proxy:
        proxies.append(Proxy(endpoint, share, ways, **more))
        return proxies[-1]

    yield build
    for proxy in proxies:
        proxy.shutdown()
        proxy.server_close()


@pytest.fixture
def impatient(monkeypatch):
    """The client tries each request once; we try it once more."""
    monkeypatch.setattr(file_systems, "_RETRIES", 0)
    monkeypatch.setattr(store_module, "_WAITS", (0.0,))


@pytest.fixture(scope="session")
def truth(whole) -> dict[str, bytes]:
    return stored(Path(whole.workspace, "shards"))


def test_shards_on_an_object_store_are_the_bytes_of_those_on_a_disk(bucket, images, truth):
    uri = bucket("ws")
    run = run_file(uri, images)
    stages.shard(run, silent)
    assert objects(bucket("ws/shards")) == truth
    assert stages.shard(run, silent)["splits"]["train"]["new_parts"] == 0
    assert verify(uri)["ok"]


@pytest.mark.parametrize("way", WAYS)
def test_errors_delays_and_cut_connections_change_no_byte(bucket, spoilt, images, truth, way):
    share = 0.3 if way == "cut upload" else 0.1  # of all requests, and few of them are uploads
    proxy = spoilt(share, way, most=2 if way == "silent" else 99)  # which costs seconds each
    stages.shard(run_file(bucket("ws", proxy.at) + "&request_timeout=1", images), silent)
    assert proxy.spoilt[way] >= 2
    assert objects(bucket("ws/shards")) == truth


@pytest.mark.parametrize("way", ["500", "silent"])
def test_a_store_that_stays_away_is_one_line_and_the_same_command_goes_on(
    bucket, spoilt, impatient, images, truth, refused, way
):
    proxy = spoilt(1.0, way)
    line = refused(stages.shard, run_file(bucket("ws", proxy.at) + "&request_timeout=1", images), silent, code=3)
    assert line.endswith("rerun the same command to resume")
    stages.shard(run_file(bucket("ws"), images), silent)
    assert objects(bucket("ws/shards")) == truth


def test_parts_whose_uploads_are_cut_are_not_done_and_are_put_again(bucket, spoilt, impatient, images, truth, refused):
    proxy = spoilt(1.0, "cut upload", only=b".tar")
    run = run_file(bucket("ws", proxy.at), images, {"cluster": {"attempts": 1}})
    assert "3 parts could not be made for want of store" in refused(stages.shard, run, silent, code=3)
    assert proxy.spoilt["cut upload"] >= 3
    assert valid_receipts(Store(bucket("ws/shards/train"))) == {}
    assert not [name for name in objects(bucket("ws/shards")) if name.endswith(".tar")]
    assert stages.shard(run_file(bucket("ws"), images), silent)["splits"]["train"]["new_parts"] == 3
    assert objects(bucket("ws/shards")) == truth


def test_an_upload_that_is_cut_is_put_again_in_full(bucket, spoilt):
    proxy = spoilt(1.0, "cut upload", most=2)
    Store(bucket("ws", proxy.at)).put("file", bytes(100_000))
    assert proxy.spoilt["cut upload"] == 2
    assert objects(bucket("ws")) == {"file": bytes(100_000)}


def test_a_store_that_takes_longer_than_pyarrow_would_wait_is_heard_the_first_time(bucket, spoilt):
    Store(bucket("ws")).put("file", b"x")
    proxy = spoilt(1.0, "slow", slow=3.6)
    assert Store(bucket("ws", proxy.at)).exists("file")
    assert proxy.spoilt["slow"] == 1


def test_an_answer_cut_within_its_head_is_no_empty_file_and_no_empty_folder(bucket, spoilt):
    Store(bucket("ws")).put("folder/file", b"x")
    for ask, answer in ((lambda s: s.read("folder/file"), b"x"), (lambda s: s.files("folder"), {"file": 1})):
        proxy = spoilt(1.0, "cut head", most=1)
        assert ask(Store(bucket("ws", proxy.at))) == answer
        assert proxy.spoilt["cut head"] == 1


def test_a_uri_says_how_long_a_store_may_be_silent_and_keeps_its_other_options(bucket, refused):
    def told(uri: str) -> dict[str, Any]:
        return Store(uri)._fs.__reduce__()[1][0]

    uri = bucket("ws")
    assert told(uri) == told(f"{uri}&request_timeout=10") and told(f"{uri}&request_timeout=20")["request_timeout"] == 20
    assert told(f"{uri}&request_timeout=20")["endpoint_override"] == told(uri)["endpoint_override"] != ""
    assert told(f"{uri}&tls_verify_certificates=false")["request_timeout"] < 0  # pyarrow does not tell that one again
    assert "cannot be opened" in refused(Store, f"{uri}&request_timeout=soon")


def test_sources_may_lie_on_an_object_store(bucket, images, truth, tmp_path):
    from tests.support.sources import parquet, sample_tars, tar_of_class_tars, tar_of_folder

    root = images / "train"
    forms = {form.__name__: form(root, tmp_path) for form in (tar_of_folder, tar_of_class_tars, sample_tars, parquet)}
    for path, data in stored(tmp_path).items():
        Store(bucket("source")).put(path, data)
    for path, data in stored(root).items():
        Store(bucket("source/folder")).put(path, data)
    places = {name: value.removeprefix(f"{tmp_path}/") for name, value in forms.items()} | {"folder": "folder"}
    results = {}
    for name, place in places.items():
        source = {"source": {"train": bucket(f"source/{place}"), "val": ""}}
        stages.shard(run_file(tmp_path / "ws" / name, images, source), silent)
        results[name] = stored(tmp_path / "ws" / name / "shards/train")
    tars = {name: data for name, data in truth.items() if name.startswith("train/") and name.endswith(".tar")}
    for name in ("folder", "tar_of_folder", "tar_of_class_tars"):
        assert {f"train/{path}": results[name][path] for path in results[name] if path.endswith(".tar")} == tars
    for name in places:
        receipts = valid_receipts(Store(str(tmp_path / "ws" / name / "shards/train"))).values()
        assert sum(receipt.rows for receipt in receipts) == 61


def test_images_of_a_source_across_a_network_are_read_again_before_they_are_left_out(
    bucket, spoilt, images, truth, tmp_path
):
    for path, data in stored(images).items():
        Store(bucket("source")).put(path, data)
    proxy = spoilt(0.15, "cut within")
    source = {"train": bucket("source/train", proxy.at), "val": bucket("source/val", proxy.at)}
    run = run_file(tmp_path / "ws", images, {"source": source, "shards": {"on_bad_image": "skip"}})
    found = stages.shard(run, silent)["splits"]
    assert proxy.spoilt["cut within"] > 5 and [split["skipped"] for split in found.values()] == [0, 0]
    tars = {name: data for name, data in stored(tmp_path / "ws/shards").items() if name.endswith(".tar")}
    assert tars == {name: data for name, data in truth.items() if name.endswith(".tar")}


def test_sharding_killed_at_random_moments_ends_with_the_same_objects(bucket, many_images, tmp_path, kills):
    run, store = run_file(bucket("ws"), many_images, PAIRS), Store(bucket("ws/shards/train"))
    killed_at_random(command("shard", config=run, folder=tmp_path), kills, lambda: len(store.files("receipts")), 122)
    assert read_manifest(store, ShardManifest) is None
    stages.shard(run, silent)
    stages.shard(run_file(bucket("calm"), many_images, PAIRS), silent)
    assert objects(bucket("ws/shards")) == objects(bucket("calm/shards"))


def test_two_commands_at_once_end_with_the_objects_of_one(bucket, images, tmp_path):
    changes = {"shards": {"samples_per_shard": 4}, "source": {"val": ""}}
    arguments = command("shard", config=run_file(bucket("both"), images, changes), folder=tmp_path)
    processes = [start(arguments), start(arguments)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    stages.shard(run_file(bucket("calm"), images, changes), silent)
    assert objects(bucket("both/shards")) == objects(bucket("calm/shards"))


def test_a_secret_in_the_uri_is_in_nothing_that_is_stored_or_said(endpoint, bucket, images, capfd):
    uri = bucket("ws").replace("s3://", "s3://hunterkey:hunter2@")
    run = run_file(uri, images, {"train": {"max_steps": 2, "distillation": "none"}})
    said = []
    stages.everything(run, said.append)
    found = objects(bucket("ws"))
    assert any(name.endswith("run.toml") for name in found) and any(name.endswith("evaluation.json") for name in found)
    assert not [name for name, data in found.items() if b"hunter" in data or b"endpoint_override" in data]
    assert not [line for line in [*said, *capfd.readouterr()] if "hunter" in line or "endpoint_override" in line]
