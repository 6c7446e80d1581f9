"""Rates of a recorded device: taken as measured, scaled where they are not, refused where there are none."""

import json

import pytest

from pipeline.execution.devices import changed
from schemas.config import RunFile
from stages.estimate.rates import read_rates
from tests.support.world import ROOT

H200 = ROOT / "docs" / "evidence" / "gpu-nvidia-h200.json"


@pytest.fixture
def small():
    return changed(RunFile(), {"student": {"model": "deit_small_distilled_patch16_224"}})


def test_a_recorded_network_has_its_own_rate(small):
    device = read_rates(str(H200))
    rate = json.loads(H200.read_text())["sections"]["student-s"]["figures"]["ready"]
    assert 1 / device.student(small, 1, "bf16").each.seconds == pytest.approx(rate["bf16 compiled"]["views_per_second"])
    eager = changed(small, {"train": {"compile": False}})
    assert 1 / device.student(eager, 1, "bf16").each.seconds == pytest.approx(rate["bf16"]["views_per_second"])
    assert device.cores == 16 and "measured on NVIDIA H200" in device.student(small, 1, "bf16").note


def test_another_network_uses_the_device_as_well_and_the_note_says_so(small):
    device = read_rates(str(H200))
    one, two = (device.student(RunFile(), flops, "bf16") for flops in (10**10, 2 * 10**10))
    assert two.each.seconds == pytest.approx(2 * one.each.seconds)
    assert "not measured" in one.note


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"card": "x", "machine": {}, "sections": {}}'])
def test_what_is_no_record_is_refused(tmp_path, refused, content):
    file = tmp_path / "gpu.json"
    file.write_text(content)
    assert "is not a record" in refused(read_rates, str(file))


def test_a_record_without_rates_says_what_to_measure(tmp_path, refused, small):
    file = tmp_path / "gpu.json"
    file.write_text('{"card": "x", "machine": {"cores": 2}, "sections": {}}')
    assert "--only teacher-16gf" in refused(read_rates(str(file)).teacher, small, 1, "fp16")
    assert "cannot be read" in refused(read_rates, str(tmp_path / "none.json"))
