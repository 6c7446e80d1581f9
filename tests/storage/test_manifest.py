"""Manifests are read part by part, and are what they would be read whole."""

import json

import pytest

from schemas.receipts import canonical_json
from stages.storage import manifest as manifests
from stages.storage.commit import put_json
from stages.storage.manifest import open_manifest
from stages.storage.store import Store


def manifest(count: int) -> dict:
    parts = [
        {"part": f"shard-{n:06d}", "rows": n, "files": [{"path": f"ü{n}.tar", "bytes": 2**40 + n, "sha256": "0" * 64}]}
        for n in range(count)
    ]
    tricky = {"a": 'an escaped "parts":[ in a string', "ü": ["]", "}"]}
    return {"made_from": tricky, "parts": parts, "stage": "x", "versions": {"z": "],"}}


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("chunk", [1, 13, 1 << 20])
def test_a_manifest_read_part_by_part_is_the_one_that_was_put(tmp_path, monkeypatch, count, chunk):
    monkeypatch.setattr(manifests, "_CHUNK", chunk)
    store, put = Store(str(tmp_path)), manifest(count)
    assert open_manifest(store) is None
    put_json(store, "manifest.json", put)
    assert open_manifest(store) == (put | {"parts": []}, tuple(range(count)))


def test_a_manifest_that_somebody_indented_is_read_as_well(tmp_path):
    store, put = Store(str(tmp_path)), manifest(3)
    store.put("manifest.json", json.dumps(put, indent=1).encode())
    assert open_manifest(store) == ({key: value for key, value in put.items() if key != "parts"}, (0, 1, 2))


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: data[:90], lambda data: b""])
def test_a_damaged_manifest_is_refused_in_one_line(tmp_path, refused, damage):
    store = Store(str(tmp_path))
    store.put("manifest.json", damage(canonical_json(manifest(3))))
    assert refused(open_manifest, store).startswith(f"{tmp_path}/manifest.json: not JSON (")
