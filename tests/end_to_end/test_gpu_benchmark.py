"""benchmarks/gpu.py runs every section at toy size, and records a failure without stopping.

Slow: it trains, labels and starts Ray as a user's first hours with a GPU would, for minutes of two cores.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def gpu(folder: Path, *arguments: str, seconds: int = 900, **environment: str) -> tuple[dict, str]:
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--toy", "--out", str(folder / "out")]
    done = subprocess.run(
        [*command, "--work", str(folder / "work"), *arguments],
        check=True, text=True, capture_output=True, timeout=seconds,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DEIT_COMMIT": "tested"} | environment,
    )  # fmt: skip
    return json.loads((folder / "out/gpu-cpu-toy.json").read_text()), done.stdout + done.stderr


def errors(value: object) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [*([str(value["error"])] if "error" in value else []), *(e for one in value.values() for e in errors(one))]


def test_every_section_runs_at_toy_size_and_is_not_run_again(tmp_path):
    record, said = gpu(tmp_path)
    sections = record["sections"]
    assert len(sections) == 13 and not errors(sections), said[-3000:]
    assert record["card"] == "cpu-toy" and {one["commit"] for one in sections.values()} == {"tested"}
    whole = sections["whole-way"]["figures"]
    assert whole["killed"]["signal"] == "SIGKILL" and whole["train"]["steps"] == 6
    bits = sections["bits"]["figures"]
    assert all(
        bits[way]["two_undisturbed_equal"] and bits[way]["resumed_equal"] for way in ("as it is", "deterministic")
    )
    assert sections["parity"]["figures"]["stage_against_online"]["differ"] == 0
    again, said = gpu(tmp_path, "--only", "ceilings,loader")
    assert again["sections"] == sections and "ceilings ..." not in said


def test_a_section_that_fails_is_recorded_with_its_error_beside_its_earlier_figures(tmp_path):
    gpu(tmp_path, "--only", "ceilings")
    record, _ = gpu(tmp_path, "--only", "parity,ceilings", "--photographs", "/nowhere", DEIT_COMMIT="later")
    assert "figures" in record["sections"]["ceilings"] and record["sections"]["ceilings"]["commit"] == "later"
    assert "error" in record["sections"]["parity"] and "figures" not in record["sections"]["parity"]
    record, _ = gpu(tmp_path, "--minutes", "0", "--again", "--only", "ceilings")
    failed = record["sections"]["ceilings"]
    assert failed["error"] == "no time was left"
    assert failed["earlier"]["commit"] == "later" and "bf16_tflops" in failed["earlier"]["figures"]
