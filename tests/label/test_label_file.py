"""Every store is plain Parquet in its documented schema, and reads back as it was written."""

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.commands import run as stages
from schemas.config import LabelsConfig
from schemas.tables import LABELS
from stages.label.label_file import read_labels, write_labels
from stages.label.labeller import keep
from stages.models.teacher import Teacher
from tests.support.world import silent

ROWS, VIEWS, CLASSES = 6, 4, 30
LOGITS = 4 * torch.randn(ROWS * VIEWS, CLASSES, generator=torch.Generator().manual_seed(0))
SETTINGS = {"hard": LabelsConfig(), "topk": LabelsConfig(store="topk", topk=5), "full": LabelsConfig(store="full")}
every_store = pytest.mark.parametrize("store", SETTINGS)


def columns(store: str) -> dict[str, np.ndarray]:
    view, row = np.divmod(np.arange(ROWS * VIEWS), ROWS)
    return {"row": row, "view": 7 + view} | {
        name: values.numpy() for name, values in keep(LOGITS, SETTINGS[store], 3.0).items()
    }


@pytest.fixture(params=SETTINGS)
def written(request, tmp_path):
    path = tmp_path / "part.parquet"
    write_labels(path, request.param, 5, columns(request.param), {(2, 8): bytes(range(48))})
    return request.param, path


def test_a_part_has_its_stores_schema_and_is_sorted_by_row_then_view(written):
    store, path = written
    assert pq.read_table(path).schema == LABELS[store]
    table = pandas.read_parquet(path)
    assert (table["shard"] == 5).all()
    assert table[["row", "view"]].values.tolist() == [[r, 7 + v] for r in range(ROWS) for v in range(VIEWS)]


def test_a_part_reads_back_as_it_was_written(written):
    store, path = written
    found, signatures = read_labels(path.read_bytes())
    assert signatures == {(2, 8): bytes(range(48))}
    given = columns(store)
    order = np.lexsort((given["view"], given["row"]))
    for name, values in given.items():
        np.testing.assert_array_equal(found[name], values[order])


@every_store
def test_an_empty_part_is_a_whole_file(store, tmp_path):
    nothing = {name: values[:0] for name, values in columns(store).items()}
    write_labels(tmp_path / "part.parquet", store, 0, nothing, {})
    assert pq.read_table(tmp_path / "part.parquet").schema == LABELS[store]
    found, signatures = read_labels((tmp_path / "part.parquet").read_bytes())
    assert {len(values) for values in found.values()} == {0} and signatures == {}


@every_store
def test_every_store_names_the_class_of_the_largest_logit(store):
    assert (columns(store)["decision"] == LOGITS.argmax(1).numpy()).all()


def test_topk_with_its_normalisers_is_the_softmax_of_what_full_keeps():
    full, topk = torch.from_numpy(columns("full")["logits"]).float(), columns("topk")
    classes = torch.from_numpy(topk["classes"])
    for tau, name in ((1.0, "lse_1"), (3.0, "lse_tau")):
        expected = (full / tau).softmax(1).gather(1, classes).numpy()
        found = np.exp(topk["logits"].astype(np.float32) / tau - topk[name][:, None])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (np.diff(topk["logits"].astype(np.float32)) <= 0).all()
    assert (topk["classes"][:, 0] == topk["decision"]).all()


@pytest.mark.parametrize("store", [{"store": "full"}, {"store": "topk", "topk": 1}])
def test_a_logit_that_16_bits_cannot_hold_is_refused(copied, refused, monkeypatch, store):
    queued, last = Teacher.queued, torch.tensor([3])
    monkeypatch.setattr(Teacher, "queued", lambda self, *given: queued(self, *given).index_fill(1, last, -7e4))
    line = refused(stages.label, copied({"labels": {"name": "large"} | store}), silent)
    assert line == 'a logit is beyond 65504, the largest 16-bit number; set labels.store = "hard"'
    assert stages.label(copied({"labels": {"name": "hard"}}), silent)["decisions"] == 360
