"""Labels are read by pandas, polars and DuckDB alone, with the very code that the documents show."""

import re
from pathlib import Path

import pandas
import pytest

from pipeline.commands import run as stages
from stages.data.split import Split
from stages.inspect.agreement import class_agreement
from stages.label.label_set import LabelSet
from tests.support.world import ROOT, run_file, silent

DOCUMENTS = {"duckdb": "README.md", "pandas": "docs/labels.md", "polars": "docs/labels.md"}
STORES = {
    "hard": {},
    "topk": {"store": "topk", "topk": 3},
    "full": {"store": "full"},
    "compact": {"store": "compact", "topk": 3},
    "sampled": {"store": "sampled", "samples": 5},
}
LISTS = {
    "topk": (3, ("classes", "logits")),
    "full": (4, ("logits",)),
    "compact": (2, ("others", "steps")),
    "sampled": (5, ("samples",)),
}


def documented(reader: str) -> str:
    """The one indented block of code in the documents that imports a reader."""
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", (ROOT / DOCUMENTS[reader]).read_text(), re.MULTILINE)
    (block,) = [block for block in blocks if f"import {reader}\n" in block]
    return re.sub("^    ", "", block, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def stored(whole, images, tmp_path_factory):
    """Store → a folder from which the documents' paths lead to labels in that store; and the truth, by class."""
    folders = {}
    for store, settings in STORES.items():
        folders[store] = tmp_path_factory.mktemp(store)
        workspace = folders[store] / "runs/photos"
        workspace.mkdir(parents=True)
        for made in ("shards", "runs"):
            (workspace / made).symlink_to(Path(whole.workspace, made))
        stages.label(run_file(workspace, images, {"labels": settings}), silent)
    split = Split.open(whole.workspace, "train")
    counts = class_agreement(LabelSet.open(whole, split), split, whole.views)
    return folders, dict(enumerate((counts[:, 0] / counts.sum(1)).tolist()))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("reader", DOCUMENTS)
def test_the_documented_query_finds_agreement_by_class_in_every_store(stored, monkeypatch, reader, store):
    pytest.importorskip(reader, reason=f"{reader} is not installed")
    folders, truth = stored
    monkeypatch.chdir(folders[store])
    names = {}
    exec(documented(reader), names)
    found = names["agreement"]
    rows = found.items() if isinstance(found, pandas.Series) else found.rows() if reader == "polars" else found
    assert {row[0]: pytest.approx(row[-1]) for row in rows} == truth
    assert 0 < min(truth.values()) < max(truth.values()) < 1


@pytest.mark.parametrize("reader", ["duckdb", "polars"])
def test_lists_arrive_whole(stored, reader):
    module = pytest.importorskip(reader, reason=f"{reader} is not installed")
    pattern = {store: str(folder / "runs/photos/labels/teacher/*.parquet") for store, folder in stored[0].items()}
    for store, (size, columns) in LISTS.items():
        if reader == "duckdb":
            rows = module.sql(f"select decision, {', '.join(columns)} from '{pattern[store]}'").fetchall()
        else:
            rows = module.read_parquet(pattern[store]).select("decision", *columns).rows()
        assert len(rows) == 360 and {len(values) for row in rows for values in row[1:]} == {size}
        if store == "topk":
            assert all(row[0] == row[1][0] for row in rows)
        elif store == "full":
            assert all(row[1][row[0]] == max(row[1]) for row in rows)
        elif store == "compact":
            assert all(row[0] not in row[1] and list(row[2]) == sorted(row[2]) for row in rows)
        else:
            assert all(list(row[1]) == sorted(row[1]) for row in rows)
