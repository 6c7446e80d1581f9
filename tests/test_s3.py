"""An object store is a store like any other: the same bytes, through errors and cut connections, read through a cache.

A real S3 server (moto) listens on loopback; a proxy before it spoils some requests: it answers with 500, late or not
at all, and cuts uploads and answers.
"""

import random
import socket
import socketserver
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from world import KILLS, PAIRS, command, killed_at_random, run_file, silent, start, stored

from pipeline import run as stages
from pipeline.overview import verify
from schemas.config import Cache
from stages import cache as cache_module
from stages import store as store_module
from stages.batches import Steps
from stages.cache import ShardCache
from stages.commit import read_manifest, valid_receipts
from stages.dataset import Split
from stages.labelset import LabelSet
from stages.replay.order import Stream
from stages.store import Store

pytest.importorskip("moto.server", reason="needs moto[server], which the dev extra brings")
boto3 = pytest.importorskip("boto3")


@pytest.fixture(scope="session")
def endpoint():
    from moto.server import ThreadedMotoServer

    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"{host}:{port}"
        server.stop()


@pytest.fixture
def bucket(endpoint, request):
    """A bucket of its own for each test; URIs of folders in it, through the server or a proxy."""
    client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
    name = f"b{abs(hash(request.node.nodeid)):x}"
    client.create_bucket(Bucket=name)
    return lambda folder, at=endpoint: f"s3://{name}/{folder}?scheme=http&endpoint_override={at}&region=us-east-1"


def objects(uri: str) -> dict[str, bytes]:
    """Path below the folder → bytes of every object."""
    store = Store(uri)
    base = urlsplit(uri).netloc + urlsplit(uri).path
    found = store._fs.get_file_info(store_module.pafs.FileSelector(base, recursive=True, allow_not_found=True))
    files = [info.path.removeprefix(f"{base}/") for info in found if info.is_file]
    return {name: store.read(name) for name in files}


WAYS = ("500", "cut before", "cut head", "cut within", "cut upload", "slow", "silent")


class Proxy(socketserver.ThreadingTCPServer):
    """Hands requests on, but spoils a share of them in one of the ways; one connection a request.

    It spoils `most` at most, and only those whose head holds `only`.

    500: an answer of that status, the store not asked. cut before: closed without an answer, the store not asked. cut
    head: a few bytes of an answer. cut within: half of it. cut upload: half a body reaches the store, then both
    connections close. slow: asked after `slow` seconds. silent: done, but the client hears nothing until it gives up.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(
        self,
        target: str,
        share: float,
        ways: tuple[str, ...],
        most: int = 1 << 30,
        only: bytes = b"",
        slow: float = 0.3,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.share, self.ways, self.most, self.only, self.slow = target, share, ways, most, only, slow
        self.spoilt = dict.fromkeys(ways, 0)
        self.random = random.Random(7)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def at(self) -> str:
        return "{}:{}".format(*self.server_address)

    def fault(self, head: bytes, uploads: bool) -> str:
        chosen = self.random.random() < self.share and self.only in head
        if not chosen or sum(self.spoilt.values()) >= self.most:
            return ""
        way = self.random.choice(self.ways)
        if way == "cut upload" and not uploads:
            return ""
        self.spoilt[way] += 1
        return way


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        head = self._head(self.rfile)
        if not head:
            return
        fields = dict(self._fields(head))
        chunked = fields.get(b"transfer-encoding") == b"chunked"
        length = int(fields.get(b"content-length", 0))
        way = self.server.fault(head, uploads=length > 0 or chunked)
        if way == "cut before":
            return
        if b"expect" in fields:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if way == "cut upload":
            self._send(head, self.rfile.readline() if chunked else self.rfile.read(length // 2)).close()
            return
        body = b"".join(self._chunks()) if chunked else self.rfile.read(length)
        if way == "500":
            self.wfile.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if way == "slow":
            time.sleep(self.server.slow)
        with self._send(head, body) as upstream:
            answer = b"".join(iter(lambda: upstream.recv(1 << 16), b""))
        if way == "silent":
            self.rfile.read(1)  # until the client closes
            return
        self.wfile.write(answer[: {"cut head": 60, "cut within": len(answer) // 2}.get(way)])

    def _chunks(self):
        """A body that comes in chunks, as it comes."""
        size = 1
        while size:
            line = self.rfile.readline()
            size = int(line.split(b";")[0], 16)
            yield line + self.rfile.read(size) + (self.rfile.readline() if size else self._head(self.rfile) or b"\r\n")

    def _send(self, head: bytes, body: bytes) -> socket.socket:
        """A connection to the store, with the request or the beginning of one on its way."""
        host, port = self.server.target.split(":")
        lines = [line for line in head.split(b"\r\n") if line.split(b":")[0].lower() not in (b"connection", b"expect")]
        upstream = socket.create_connection((host, int(port)))
        upstream.sendall(b"\r\n".join([*lines[:-2], b"Connection: close", b"", b""]) + body)
        return upstream

    @staticmethod
    def _head(file) -> bytes:
        lines = []
        while (line := file.readline()) not in (b"", b"\r\n"):
            lines.append(line)
        return b"".join([*lines, b"\r\n"]) if lines else b""

    @staticmethod
    def _fields(head: bytes):
        return [
            (k.strip().lower(), v.strip()) for k, _, v in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        ]


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
    monkeypatch.setattr(store_module, "_RETRIES", 0)
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
    assert line.endswith("the same command goes on")
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
    from test_sources import parquet, sample_tars, tar_of_class_tars, tar_of_folder

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


def test_sharding_killed_at_random_moments_ends_with_the_same_objects(bucket, many_images, tmp_path):
    run, store = run_file(bucket("ws"), many_images, PAIRS), Store(bucket("ws/shards/train"))
    killed_at_random(command("shard", run=run, folder=tmp_path), KILLS, lambda: len(store.files("receipts")), 122)
    assert read_manifest(store) is None
    stages.shard(run, silent)
    stages.shard(run_file(bucket("calm"), many_images, PAIRS), silent)
    assert objects(bucket("ws/shards")) == objects(bucket("calm/shards"))


def test_two_commands_at_once_end_with_the_objects_of_one(bucket, images, tmp_path):
    changes = {"shards": {"samples_per_shard": 4}, "source": {"val": ""}}
    arguments = command("shard", run=run_file(bucket("both"), images, changes), folder=tmp_path)
    processes = [start(arguments), start(arguments)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    stages.shard(run_file(bucket("calm"), images, changes), silent)
    assert objects(bucket("both/shards")) == objects(bucket("calm/shards"))


# ---- reading through the cache


def remote(whole, bucket, settings: Cache) -> Split:
    for name, data in stored(Path(whole.workspace)).items():
        Store(bucket("ws")).put(name, data)
    return Split.open(bucket("ws"), "train", settings)


def test_training_reads_the_same_batches_through_a_cache_that_never_grows_beyond_its_bound(bucket, whole, tmp_path):
    local = Split.open(whole.workspace, "train")
    bound = sorted(local.tar(shard).bytes for shard in range(3))[-2:]
    settings = Cache(folder=str(tmp_path / "cache"), gigabytes=(sum(bound) + 100) / 1e9)
    split = remote(whole, bucket, settings)
    steps = {}
    for name, one in (("local", local), ("remote", split)):
        stream = Stream(one.rows, repeats=2, window=2, recipe_seed=0, seed=0)
        steps[name] = Steps(one, whole.views, stream, LabelSet.open(whole, local), batch=16, rank=0, world=1)
    largest = 0
    for step in range(6):
        assert (steps["remote"][step].views == steps["local"][step].views).all()
        largest = max(largest, sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()))
    assert 0 < largest <= sum(bound) + 100


def test_the_next_window_is_copied_before_it_is_read(bucket, whole, tmp_path):
    split = remote(whole, bucket, Cache(folder=str(tmp_path / "cache"), gigabytes=1))
    split.expect([0], [2])
    split._cache._filler.join(30)
    names = {path.name for path in (tmp_path / "cache").glob("*.tar")}
    assert names == {f"{split.tar(shard).sha256}.tar" for shard in (0, 2)}
    Store(bucket("ws/shards/train")).delete("shard-000002.tar")
    assert split.image(2, 0) == Split.open(whole.workspace, "train").image(2, 0)


def test_a_window_that_does_not_fit_is_refused_with_what_to_change(bucket, whole, tmp_path, refused):
    split = remote(whole, bucket, Cache(folder=str(tmp_path), gigabytes=1e-4))
    line = refused(split.expect, [0, 1, 2], [])
    assert line.startswith("cache.gigabytes = 0.0001: the 3 shards") and "lower train.window" in line
    tiny = ShardCache(Store(bucket("ws/shards/train")), Cache(folder=str(tmp_path), gigabytes=1e-6))
    assert "one shard takes" in refused(tiny.read, split.tar(0), 1, 0)


def test_a_full_disk_is_one_line(bucket, whole, tmp_path, refused, monkeypatch):
    split = remote(whole, bucket, Cache(folder=str(tmp_path), gigabytes=1))

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "posix_fallocate", full)
    line = refused(split.image, 0, 0)
    assert "(No space left on device); name a folder on a larger disk, or lower cache.gigabytes" in line
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []


def test_what_a_killed_process_left_half_copied_makes_room(bucket, whole, tmp_path):
    split = remote(whole, bucket, Cache(folder=str(tmp_path), gigabytes=1e-3))
    (tmp_path / ".0.half").write_bytes(bytes(900_000))
    split.image(0, 0)
    assert not (tmp_path / ".0.half").exists()


def test_a_copy_with_other_bytes_than_the_receipt_is_never_kept(bucket, whole, tmp_path, refused):
    split = remote(whole, bucket, Cache(folder=str(tmp_path), gigabytes=1))
    store = Store(bucket("ws/shards/train"))
    data = bytearray(store.read("shard-000000.tar"))
    data[700] ^= 1
    store.put("shard-000000.tar", bytes(data))
    assert "has other bytes than its receipt says" in refused(split.image, 0, 0)
    store.delete("shard-000001.tar")
    assert "shard-000001.tar: is missing; run" in refused(split.image, 1, 0)
    assert list(tmp_path.glob("*.tar")) == []


# ---- secrets


def test_a_secret_in_the_uri_is_in_nothing_that_is_stored_or_said(endpoint, bucket, images, capfd):
    uri = bucket("ws").replace("s3://", "s3://hunterkey:hunter2@")
    run = run_file(uri, images, {"train": {"max_steps": 2, "distillation": "none"}})
    said = []
    stages.everything(run, said.append)
    found = objects(bucket("ws"))
    assert any(name.endswith("run.toml") for name in found) and any(name.endswith("evaluation.json") for name in found)
    assert not [name for name, data in found.items() if b"hunter" in data or b"endpoint_override" in data]
    assert not [line for line in [*said, *capfd.readouterr()] if "hunter" in line or "endpoint_override" in line]
