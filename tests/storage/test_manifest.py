"""Manifests: parts lie beside them as a table, those of version 0.1.0 still open, and nothing in them is believed."""

import json

import pytest

from schemas.errors import MismatchError
from schemas.manifests import LabelManifest, PredictionsManifest, ShardManifest, TrainManifest
from schemas.parts import Parts
from schemas.plan import Plan
from schemas.receipts import Receipt, StoredFile, canonical_json, fingerprint
from stages.storage.commit import put_state, read_plan
from stages.storage.manifest import open_manifest, put_manifest, read_manifest
from stages.storage.store import Store

MADE_FROM = {"a": 'an escaped "parts":[ in a string', "ü": ["]", "}"]}
IDENTITY = {"made_from": MADE_FROM, "made_by": fingerprint(MADE_FROM), "versions": {"z": "],"}, "stage": "evaluate"}


def receipts(count: int) -> list[Receipt]:
    return [
        Receipt(
            part=f"block-{n:06d}",
            files=(StoredFile(path=f"ü{n}.parquet", bytes=2**40 + n, sha256=f"{n:064x}"),),
            rows=n,
            made_by=IDENTITY["made_by"],
            facts={},
        )
        for n in range(count)
    ]


def listed(count: int) -> list[dict]:
    """As version 0.1.0 lists parts."""
    return [{"part": r.part, "rows": r.rows, "files": [vars(f) for f in r.files]} for r in receipts(count)]


def of_first_version(count: int) -> dict:
    return IDENTITY | {"content": fingerprint(listed(count)), "parts": listed(count)}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_a_manifest_comes_back_as_it_was_put_and_its_content_is_that_of_version_0_1_0(store, count):
    assert open_manifest(store, PredictionsManifest) is None
    put = put_manifest(store, PredictionsManifest, Parts.of(receipts(count)), **IDENTITY)
    found = open_manifest(store, PredictionsManifest)
    assert found.manifest == put.manifest and found.parts.rows == tuple(range(count))
    assert found.manifest.content == fingerprint(listed(count)) == found.parts.content()
    assert [(one.part, one.rows, one.files) for one in found.parts] == [
        (one.part, one.rows, one.files) for one in receipts(count)
    ]
    assert store.length("manifest.json") < 1000


@pytest.mark.parametrize("indent", [None, 1])
def test_a_manifest_of_version_0_1_0_still_opens(store, indent):
    store.put("manifest.json", json.dumps(of_first_version(3), indent=indent).encode())
    found = open_manifest(store, PredictionsManifest)
    assert list(found.parts.names) == [f"block-{n:06d}" for n in range(3)] and found.manifest.wanted == 3


def test_a_grown_manifest_takes_the_parts_of_the_last_with_it_and_readers_of_the_last_find_the_new(store, monkeypatch):
    put_manifest(store, PredictionsManifest, Parts.of(receipts(2)), **IDENTITY)
    read = Store.read

    def overtaken(self, path):
        if path.endswith(".parquet"):
            monkeypatch.undo()
            put_manifest(store, PredictionsManifest, Parts.of(receipts(3)), **IDENTITY)
        return read(self, path)

    monkeypatch.setattr(Store, "read", overtaken)
    assert open_manifest(store, PredictionsManifest).manifest.wanted == 3
    assert len(store.files("manifest")) == 1


OUTSIDE = {"path": "../x", "bytes": 1, "sha256": "0" * 64}
EDITS = {
    "a part removed": lambda one: one | {"parts": one["parts"][:-1]},
    "rows": lambda one: one | {"parts": [one["parts"][0] | {"rows": 7}, *one["parts"][1:]]},
    "content": lambda one: one | {"content": "0" * 64},
    "made_by": lambda one: one | {"made_by": "0" * 64},
    "made_from": lambda one: one | {"made_from": {"a": 1}},
    "parts: null": lambda one: one | {"parts": None},
    "no object": lambda one: [],
    "nothing": lambda one: {},
    "another stage": lambda one: one | {"stage": "shard"},
    "an unknown field": lambda one: one | {"more": 1},
    "a path outside": lambda one: one | {"parts": [one["parts"][0] | {"files": [OUTSIDE]}]},
    "negative rows": lambda one: one | {"parts": [one["parts"][0] | {"rows": -1}]},
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_of_version_0_1_0_is_refused_in_one_line_with_the_fix(store, refused, edit):
    store.put("manifest.json", canonical_json(EDITS[edit](of_first_version(3))))
    line = refused(open_manifest, store, PredictionsManifest)
    assert line.startswith(f"{store}/manifest.json: is damaged (")
    assert line.endswith("); delete it and rerun `deit-pipeline evaluate`")


DAMAGES = {
    "truncate": lambda data: data[:-40],
    "cut": lambda data: data[:90],
    "empty": lambda data: b"",
    "zero": lambda data: bytes(len(data)),
    "flip": lambda data: data[:50] + b"~" + data[51:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("path", ["manifest.json", "manifest"])
def test_a_damaged_manifest_and_a_damaged_list_of_parts_are_refused(store, refused, path, damage):
    put_manifest(store, PredictionsManifest, Parts.of(receipts(3)), **IDENTITY)
    if path == "manifest":
        path = f"manifest/{next(iter(store.files('manifest')))}"
    store.put(path, DAMAGES[damage](store.read(path)))
    line = refused(open_manifest, store, PredictionsManifest)
    assert line.startswith(f"{store}/{path}: ") and line.endswith(" and rerun `deit-pipeline evaluate`")
    store.delete("manifest.json")
    if not path.endswith(".json"):
        assert f"delete {store}/manifest.json and" in line
    put_manifest(store, PredictionsManifest, Parts.of(receipts(3)), **IDENTITY)  # as the stage does
    assert open_manifest(store, PredictionsManifest).manifest.wanted == 3


@pytest.mark.parametrize("foreign", ["plan.json", "manifest.json"])
def test_a_manifest_of_something_else_than_the_plan_is_refused_and_the_odd_one_is_named(store, foreign):
    put_manifest(store, PredictionsManifest, Parts.of(receipts(1)), **IDENTITY)
    put_state(store, "plan.json", Plan(made_from={"other": 1}, versions={}))
    made_by = {"plan.json": IDENTITY["made_by"], "manifest.json": fingerprint({"other": 1})}[foreign]
    store.put("receipts/a.json", Receipt(part="a", files=(), rows=0, made_by=made_by, facts={}).to_json())
    with pytest.raises(MismatchError, match=f"{foreign}: is of something else than this folder's parts; delete it"):
        read_manifest(store, PredictionsManifest)


def test_a_plan_without_its_fields_is_refused_in_one_line(store, refused):
    for data, cause in ((b"{}", "no field made_from"), (b"[]", "not a JSON object"), (b'{"made_from', "not JSON")):
        store.put("plan.json", data)
        assert f"{store}/plan.json: is damaged ({cause}" in refused(read_plan, store)


def test_the_classes_of_a_split_are_those_it_was_made_with():
    made_from = {"classes": ["a", "b"]}
    fields = {"made_from": made_from, "made_by": fingerprint(made_from), "versions": {}, "stage": "shard", "parts": []}
    fields |= {"found": 0, "samples": 0, "skipped": [], "other_files": 0, "content": fingerprint([])}
    assert ShardManifest.from_json(canonical_json(fields | {"classes": ["a", "b"]}), "x").classes == ("a", "b")
    with pytest.raises(Exception, match="classes are not those of made_from"):
        ShardManifest.from_json(canonical_json(fields | {"classes": ["b", "a"]}), "x")


@pytest.mark.parametrize("kind", [LabelManifest, TrainManifest, ShardManifest])
def test_every_field_of_a_manifest_is_needed(kind):
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    with pytest.raises(Exception, match="no field "):
        kind.from_json(b"{}", "x")
    assert {"made_from", "made_by", "stage"} <= set(required)
