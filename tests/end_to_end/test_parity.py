"""Offline equals online: a short run of benchmarks/parity.py, and what it says where something differs."""

import importlib
import json
import subprocess
import sys

import pytest

from tests.support.world import ROOT

PARITY = ROOT / "benchmarks/parity.py"


@pytest.mark.slow
def test_stored_decisions_lead_to_the_bits_of_a_teacher_in_the_loop(tmp_path):
    out = tmp_path / "parity.json"
    subprocess.run([sys.executable, PARITY, "--steps", "12", "--json", out], check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["equal"] and found["distinct_decisions"] > 1
    assert found["ways"].keys() == {"one process", "the authors' formula", "two ranks"}
    for way in found["ways"].values():
        assert (way["decisions"], way["decisions_different"]) == (192, 0)
        assert (way["weights_compared_at"], way["weights_different_at"]) == ([3, 6, 9, 12], [])


def test_another_decision_and_other_weights_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parity = importlib.import_module("parity")
    walk = parity.online.Walk({(0, 0, 0): 1, (0, 1, 0): 2}, {3: "a", 6: "b"})
    found = parity.compare(walk, {3: "a", 6: "c"}, {(0, 0, 0): 1, (0, 1, 0): 3})
    assert (found["decisions_different"], found["weights_different_at"]) == (1, [6])
    with pytest.raises(RuntimeError, match="nothing to compare"):
        parity.compare(parity.online.Walk(), {3: "a"}, {})
