"""What a run file takes, from given costs: who waits for whom, what is counted, what is stored."""

import pytest

from pipeline.execution.devices import changed
from stages.estimate.facts import Facts
from stages.estimate.forecast import Costs, Machine, Starts, forecast
from stages.estimate.networks import StudentFacts
from stages.estimate.probe import DataCosts
from stages.estimate.sizes import LabelBytes, ModelBytes
from stages.estimate.timing import BatchCost, Cost
from tests.support.world import run_file

DATA = DataCosts(
    pack=0.01, label_view=0.001, train_view=0.002, cached_view=0.001, crop=0.004,
    packed_bytes=1000.0, encoded_bytes=900.0, decoded_bytes=3000.0,
)  # fmt: skip
FACTS = Facts((21, 20, 20), 20, 4, 0, 0, 0, "test", ())
STUDENT = StudentFacts(ModelBytes(100, 400), 25, 1, True)
GPU = Machine(devices=2, cores=8, on_cores=False, starts=Starts(0.0, 0.0))


def costs(network: float) -> Costs:
    one = BatchCost(Cost(0.0, 0.0), Cost(network, 0.0))
    return Costs(DATA, {"fp32": one}, {"fp32": one}, one, Cost(0.0, 0.0), LabelBytes(2.0, 0.0))


@pytest.fixture
def config(images, tmp_path):
    return changed(
        run_file(tmp_path / "workspace", images),
        {
            "teacher": {"precision": "fp32"},
            "train": {"precision": "fp32", "workers": 4},
            "labels": {"workers": 4},
        },
    )


@pytest.mark.parametrize(("network", "bound", "seconds"), [(0.1, "network", 0.1), (1e-5, "views", 0.002 / 4)])
def test_a_device_waits_for_the_slower_of_network_and_data_processes(config, network, bound, seconds):
    train = forecast(config, FACTS, STUDENT, costs(network), GPU).stages["train"]
    steps = (61 // 16) * 4
    assert (train.bound, train.units) == (bound, steps * 16)
    assert train.seconds == pytest.approx(steps * 16 * seconds / 2)
    assert train.device_seconds == pytest.approx(2 * train.seconds)


def test_on_cores_the_sum_of_what_both_take_counts(config):
    one = BatchCost(Cost(0.0, 0.0), Cost(0.001, 0.004))
    shared = Costs(DATA, {"fp32": one}, {"fp32": one}, one, Cost(0.0, 0.0), LabelBytes(2.0, 0.0))
    machine = Machine(devices=1, cores=2, on_cores=True, starts=Starts(0.0, 0.0))
    train = forecast(config, FACTS, STUDENT, shared, machine).stages["train"]
    assert train.bound == "cores"
    assert train.seconds == pytest.approx(train.units * (0.004 + 0.002) / 2)


def test_every_pair_of_every_pass_is_labelled_and_every_centre_crop(config):
    label = forecast(config, FACTS, STUDENT, costs(0.1), GPU).stages["label-teacher"]
    assert label.units == 2 * (10 + 10 + 10) * 6
    assert label.bytes == 2.0 * label.units
    assert label.device_seconds == pytest.approx((label.units + 61) * 0.1)


def test_fewer_views_and_the_decoded_cache_save_what_they_are(config):
    whole = forecast(config, FACTS, STUDENT, costs(1e-5), GPU)
    fewer = forecast(changed(config, {"labels": {"views": 2}}), FACTS, STUDENT, costs(1e-5), GPU)
    assert fewer.labelled_views == whole.labelled_views / 3
    cached = forecast(changed(config, {"cache": {"decoded": True}}), FACTS, STUDENT, costs(1e-5), GPU)
    assert cached.stages["train"].seconds == pytest.approx(whole.stages["train"].seconds / 2)
    small = {"decoded": True, "decoded_gigabytes": 61 * 3000 / 2 / 1e9}
    half = forecast(changed(config, {"cache": small}), FACTS, STUDENT, costs(1e-5), GPU)
    assert half.stages["train"].seconds == pytest.approx(whole.stages["train"].seconds * 0.75)


def test_a_training_without_a_teacher_labels_nothing(config):
    plain = changed(config, {"train": {"distillation": "none"}})
    assert "label-teacher" not in forecast(plain, FACTS, STUDENT, costs(0.1), GPU).stages


def test_only_the_checkpoints_that_are_kept_take_space(config):
    found = forecast(config, FACTS, STUDENT, costs(0.1), GPU)
    assert found.checkpoints == 4
    assert found.stages["train"].bytes == 2 * 400 + 2 * 100
