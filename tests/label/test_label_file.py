"""Every store is plain Parquet in its documented schema, and reads back as it was written."""

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.commands import run as stages
from schemas.config import LabelsConfig
from schemas.tables import LABELS
from stages.label.encoding import keep, probabilities
from stages.label.label_file import read_labels, write_labels
from stages.models.teacher import Teacher
from tests.support.world import silent

ROWS, VIEWS, CLASSES = 6, 4, 30
LOGITS = 4 * torch.randn(ROWS * VIEWS, CLASSES, generator=torch.Generator().manual_seed(0))
SETTINGS = {
    "hard": LabelsConfig(),
    "topk": LabelsConfig(store="topk", topk=5),
    "full": LabelsConfig(store="full"),
    "compact": LabelsConfig(store="compact", topk=5),
    "sampled": LabelsConfig(store="sampled", samples=40),
}
OFFSETS = torch.linspace(0, 1, ROWS * VIEWS + 1, dtype=torch.float64)[:-1]
every_store = pytest.mark.parametrize("store", SETTINGS)


def columns(store: str) -> dict[str, np.ndarray]:
    view, row = np.divmod(np.arange(ROWS * VIEWS), ROWS)
    return {"row": row, "view": 7 + view} | {
        name: values.numpy() for name, values in keep(LOGITS, SETTINGS[store], 3.0, OFFSETS).items()
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


def exact(tau: float) -> torch.Tensor:
    """The teacher's probabilities as `full` keeps them, float64 [N, K]."""
    return (LOGITS.half().double() / tau).softmax(1)


def kept(store: str, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The classes of a small soft store and their probabilities at a temperature, as they are read back."""
    found = probabilities(columns(store), store, 3.0)
    normaliser = found["lse_tau" if tau == 3 else "lse_1"]
    shares = np.exp(found["logits"].astype(np.float64) / tau - normaliser[:, None])
    return torch.from_numpy(found["classes"].astype(np.int64)), torch.from_numpy(shares)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_compact_keeps_the_likeliest_classes_with_nearly_their_probabilities(tau):
    classes, shares = kept("compact", tau)
    assert torch.equal(classes, LOGITS.argsort(dim=1, descending=True, stable=True)[:, :5])
    expected = exact(tau).gather(1, classes)
    p, q = (torch.cat([one, 1 - one.sum(1, keepdim=True)], 1) for one in (expected, shares))
    divergence = (p * (p / q).log()).sum(1)
    assert 1e-6 < divergence.mean() < 1e-3 and divergence.max() < 3e-3


def test_compact_is_read_by_the_formula_that_its_schema_documents():
    given, (_, shares) = columns("compact"), kept("compact", 3.0)
    tail = 1 / (1 + np.exp(-0.125 * given["tail_tau"].astype(float)))
    others = np.exp(-0.125 * given["steps"].astype(float) / 3)
    decision = (1 - tail) / (1 + others.sum(1))
    np.testing.assert_allclose(shares[:, 0], decision, rtol=1e-5)
    np.testing.assert_allclose(shares[:, 1:], decision[:, None] * others, rtol=1e-5)


def test_compact_keeps_a_teacher_that_is_certain():
    logits = torch.tensor([[60.0, 0.0, -60.0, -300.0]])
    found = keep(logits, LabelsConfig(store="compact", topk=3), 1.0)
    assert found["steps"].tolist() == [[255, 255]] and found["tail_1"].tolist() == [-127]
    back = probabilities({name: one.numpy() for name, one in found.items()}, "compact", 1.0)
    np.testing.assert_allclose(np.exp(back["logits"] - back["lse_1"][:, None])[0, 0], 1, atol=1e-6)


def test_samples_are_of_each_class_what_its_probability_says_on_average():
    logits, settings = LOGITS[:1], LabelsConfig(store="sampled", samples=7)
    offsets = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = keep(logits.expand(4000, -1), settings, 3.0, offsets)["samples"]
    assert drawn.shape == (4000, 7) and (drawn.diff(dim=1) >= 0).all()
    shares = torch.bincount(drawn.ravel(), minlength=CLASSES) / drawn.numel()
    torch.testing.assert_close(shares.double(), exact(3.0)[0], atol=1e-4, rtol=0)
    counts = torch.stack([torch.bincount(one, minlength=CLASSES) for one in drawn[::100]])
    assert ((counts - 7 * exact(3.0)[0]).abs() < 1).all()


def test_samples_are_read_as_shares_of_their_list():
    classes, shares = kept("sampled", 3.0)
    given = columns("sampled")["samples"]
    for view in range(len(given)):
        counts = np.bincount(given[view], minlength=CLASSES) / 40
        found = np.zeros(CLASSES)
        np.add.at(found, classes[view].numpy(), shares[view].numpy())
        np.testing.assert_allclose(found, counts, atol=1e-6)


@pytest.mark.parametrize("store", [{"store": "full"}, {"store": "topk", "topk": 1}, {"store": "compact", "topk": 2}])
def test_a_logit_that_16_bits_cannot_hold_is_refused(copied, refused, monkeypatch, store):
    queued, last = Teacher.queued, torch.tensor([3])
    monkeypatch.setattr(Teacher, "queued", lambda self, *given: queued(self, *given).index_fill(1, last, -7e4))
    line = refused(stages.label, copied({"labels": {"name": "large"} | store}), silent)
    assert line == 'a logit is beyond 65504, the largest 16-bit number; set labels.store = "hard"'
    assert stages.label(copied({"labels": {"name": "hard"}}), silent)["decisions"] == 360
