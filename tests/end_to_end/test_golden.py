"""The golden sums: nothing that a run stores depends on where or when it ran, and a difference is named."""

import json
import subprocess
import sys

import pytest

from tests.support.world import ROOT

pytestmark = pytest.mark.slow

GOLDEN = ROOT / "benchmarks/golden.py"


def test_another_run_elsewhere_stores_the_same_bytes_and_a_changed_one_is_named(tmp_path):
    first = tmp_path / "first.json"
    subprocess.run([sys.executable, GOLDEN, "--json", first], cwd=tmp_path, check=True, capture_output=True)
    sums = json.loads(first.read_text())
    assert {path.partition("/")[0] for path in sums} == {"shards", "labels", "runs", "predictions"}
    assert "runs/hard/checkpoints/step-000000012/metrics.jsonl" in sums
    assert "labels/topk/shard-000000.passes-00000-00002.parquet" in sums
    changed = sums | {"runs/hard/model.safetensors": "0" * 64, "runs/gone/plan.json": "0" * 64}
    del changed["shards/train/manifest.json"]
    second = tmp_path / "second.json"
    second.write_text(json.dumps(changed))
    (tmp_path / "elsewhere").mkdir()
    again = subprocess.run(
        [sys.executable, GOLDEN, "--compare", second], cwd=tmp_path / "elsewhere", capture_output=True, text=True
    )
    assert again.returncode == 1
    assert again.stdout.splitlines() == [
        "runs/gone/plan.json: is missing",
        "shards/train/manifest.json: is new",
        "runs/hard/model.safetensors: has other bytes",
        f"{len(sums)} files, 3 differ",
    ]
