"""The sections of benchmarks/gpu.py by name: each takes a `Bench`, runs in a process of its own and returns figures."""

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_bench import (
    ROOT,
    Bench,
    changed,
    figures,
    in_child,
    say,
    seconds,
)
from gpu_models import compiling, student, teacher

from pipeline.commands.throughput import throughput as measure_throughput
from schemas.config import RunFile
from schemas.paper import TABLE_5
from schemas.toml_text import toml_text
from stages.data.loader import load
from stages.data.split import Split
from stages.label.label_set import LabelSpec
from stages.label.labeller import Labeller
from stages.label.stability import stability
from stages.train.loop import train
from stages.train.plan import plan_training
from stages.train.trainer import Trainer

# ---- (a) ceilings -------------------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> dict[str, Any]:
    """A product of matrices in each precision, copies to the device, and within it."""
    device, side = bench.device, 256 if bench.toy else 8192
    found: dict[str, Any] = {"matrix_side": side}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("tf32", torch.float32)):
        torch.backends.cuda.matmul.allow_tf32 = True
        one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        took = seconds(partial(torch.matmul, one, other), count=10)
        found[f"{name}_tflops"] = round(2 * side**3 / took / 1e12, 1)
    count = (1 if bench.toy else 128) * 150_528
    for name, pin in (("pinned", True), ("pageable", False)):
        host = torch.zeros(count, dtype=torch.uint8, pin_memory=pin and not bench.toy)
        took = seconds(partial(host.to, device, non_blocking=True), count=20)
        found[f"to_device_{name}_gb_per_second"] = round(count / took / 1e9, 2)
    block = torch.zeros(count * 8, dtype=torch.uint8, device=device)
    found["within_device_gb_per_second"] = round(2 * len(block) / seconds(block.clone, count=10) / 1e9, 1)
    return found


# ---- (b) all stages -----------------------------------------------------------------------------------------------


def ray_train(bench: Bench) -> dict[str, Any]:
    """Another training of that workspace through an embedded Ray and Ray Train, with nccl on a GPU."""
    file = _small(bench, "ray", "local")
    if not Path(bench.folder, "whole/labels/teacher/manifest.json").exists():
        _small_data(bench)
    return _killed_and_resumed(bench, "ray", file)


def whole_way(bench: Bench) -> dict[str, Any]:
    """Shard, label, train, SIGKILL in the middle, the same command again, evaluate; as commands, without Ray."""
    shutil.rmtree(bench.folder / "whole", ignore_errors=True)
    found = _small_data(bench)
    file = _small(bench, "inline", "inline")
    found |= _killed_and_resumed(bench, "inline", file)
    return found | {verb: _command(verb, file) for verb in ("evaluate", "verify")}


def _small(bench: Bench, name: str, address: str) -> Path:
    """The run file of a training of 50 steps, over one copy of the photographs, without data processes at toy size."""
    steps, some = (6, {"workers": 0}) if bench.toy else (50, {})
    train_ = {"name": name, "max_steps": steps, "checkpoint_every": steps // 3, "log_every": 1, **some}
    cluster = {"address": address, "device": bench.device.type}
    run = bench.run_file(
        "whole",
        copies=1,
        labels={"views": 6, "workers": "auto", **some},
        train={"workers": "auto", "batch_size": 8 if bench.toy else 64, **train_},
        cluster=cluster,
    )
    run = changed(run, source={"val": run.source.train})
    file = bench.folder / f"{name}.toml"
    file.write_text(toml_text(run))
    return file


def _small_data(bench: Bench) -> dict[str, Any]:
    file = _small(bench, "inline", "inline")
    return {verb: _command(verb, file) for verb in ("shard", "label-teacher")}


def _killed_and_resumed(bench: Bench, name: str, file: Path) -> dict[str, Any]:
    receipts = bench.folder / "whole" / "runs" / name / "receipts"
    killed = _command("train", file, kill=lambda: any(receipts.glob("step-*.json")))
    if "signal" not in killed:
        raise RuntimeError(f"the training ended before it was killed: {killed}")
    return {"killed": killed, "train": _command("train", file)}


def _command(verb: str, file: Path, kill: Callable[[], bool] | None = None) -> dict[str, Any]:
    """A command's --json output, without its long parts; killed with all its processes once `kill` returns true."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "cli.py"), verb, "-c", str(file), "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    while kill is not None and process.poll() is None:
        if kill():
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return {"signal": "SIGKILL", "seconds": round(time.perf_counter() - start, 1)}
        time.sleep(0.02)
    said, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{verb} ended with {process.returncode}: {errors.strip()[-600:]}")
    result = json.loads(said.splitlines()[-1])
    short = {key: value for key, value in result.items() if isinstance(value, int | float | str | bool | None)}
    device = next((line for line in errors.splitlines() if " on cuda" in line or " on cpu" in line), "")
    return {"seconds": round(time.perf_counter() - start, 1), "device": device} | short


# ---- (e) parity ---------------------------------------------------------------------------------------------------


def parity(bench: Bench) -> dict[str, Any]:
    """Decisions of the label stage against the same teacher on the same views here; and of other precisions."""
    run = bench.prepared()
    split, count = Split.open(run.workspace, "train"), 16 if bench.toy else 2048
    found: dict[str, Any] = {"teacher": run.teacher.model, "weights": "random" if not bench.weights else "real"}
    labeller = Labeller(run, split, bench.device.type)
    said = labeller.decide(LabelSpec(0, 0, 1))
    again = []
    for batch in labeller.batches(LabelSpec(0, 0, 1)):
        again.append(labeller.teacher.logits(batch.views, batch.mixes).argmax(1).cpu().numpy())
    differ = int((np.concatenate(again) != said.columns["decision"]).sum())
    found["stage_against_online"] = {"decisions": len(said.margins), "differ": differ}
    ways = stability(run, split, bench.device, count)
    found["against_fp32"] = {
        f"{one['precision']} batch {one['batch_size']}": {key: one[key] for key in one if key != "precision"}
        for one in ways
    }
    return found


# ---- (f) the loader alone -----------------------------------------------------------------------------------------


def loader(bench: Bench) -> dict[str, Any]:
    """Views a second into page-locked memory, nobody using them."""
    found = {}
    for workers in (1,) if bench.toy else (4, 8, 16):
        found[f"{workers} workers"] = in_child(partial(_loader, bench, workers))
    return found


def _loader(bench: Bench, workers: int) -> dict[str, Any]:
    run = changed(bench.prepared(), train={"batch_size": 8 if bench.toy else 256})
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=torch.device("cpu"))
    torch.set_num_threads(1)
    batches = load(trainer.data, workers=workers, order=range(10**6), pin=bench.device.type == "cuda")
    for _ in range(1 + 3 * workers):
        next(batches)
    count, start = 4 * workers, time.perf_counter()
    for _ in range(count):
        next(batches)
    rate = count * run.train.batch_size / (time.perf_counter() - start)
    return {"views_per_second": round(rate, 1), "each": round(rate / workers, 1)}


# ---- (g) the same bits again --------------------------------------------------------------------------------------


def bits(bench: Bench) -> dict[str, Any]:
    """Two undisturbed trainings and one that was killed and resumed, compared bit for bit, in two ways."""
    found = {}
    in_child(lambda: {"prepared": bool(bench.prepared())})
    for name, deterministic in (("as it is", False), ("deterministic", True)):
        runs = [f"bits-{name}-{nth}".replace(" ", "-") for nth in ("one", "two", "killed")]
        rates = [in_child(partial(_train_bits, bench, run, deterministic)) for run in runs[:2]]
        _kill(bench, runs[2], deterministic)
        rates.append(in_child(partial(_train_bits, bench, runs[2], deterministic)))
        if failed := [one["error"] for one in rates if "error" in one]:
            raise RuntimeError(failed[0])
        sums = [_sha(bench.folder / "work" / "runs" / run / "model.safetensors") for run in runs]
        found[name] = {
            "two_undisturbed_equal": sums[0] == sums[1],
            "resumed_equal": sums[2] == sums[0],
            "resumed_from_step": rates[2]["resumed_from_step"],
            "views_per_second": statistics.median(one["views_per_second"] for one in rates[:2]),
        }
    price = 1 - found["deterministic"]["views_per_second"] / found["as it is"]["views_per_second"]
    return found | {"price_of_determinism": round(price, 4)}


def _bits_run(bench: Bench, name: str, deterministic: bool) -> RunFile:
    steps = 6 if bench.toy else 30
    train_ = {"name": name, "deterministic": deterministic, "max_steps": steps, "checkpoint_every": steps // 3}
    train_ |= {"precision": "fp32" if bench.toy else "bf16", "compile": False, "log_every": steps // 3}
    train_ |= {"batch_size": 8 if bench.toy else 256}
    return changed(bench.prepared(), train=train_)


def _train_bits(bench: Bench, name: str, deterministic: bool, kill_at: int = -1) -> dict[str, Any]:
    def report(step: int, metrics: dict[str, Any]) -> bool:
        if step == kill_at:
            os.killpg(0, signal.SIGKILL)
        rates.append(metrics.get("views_per_second"))
        return False

    rates: list[float | None] = []
    run = _bits_run(bench, name, deterministic)
    result = train(run, rank=0, world=1, device=bench.device, report=report)
    return result | {"views_per_second": rates[-1]}


def _kill(bench: Bench, name: str, deterministic: bool) -> None:
    """Start a training and end it with SIGKILL, data processes and all, between two of its checkpoints."""
    kill_at = 3 if bench.toy else 17

    def killed() -> dict[str, Any]:
        os.setpgid(0, 0)
        return _train_bits(bench, name, deterministic, kill_at)

    if "-9" not in in_child(killed).get("error", ""):
        raise RuntimeError("the training was not killed")


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- (i) throughput -----------------------------------------------------------------------------------------------


def throughput(bench: Bench) -> dict[str, Any]:
    """Images a second of the models of the paper's Table 5 that timm has, as `evaluate --throughput` measures them."""
    names = ["resnet18", "deit_tiny_patch16_224"] if bench.toy else list(dict.fromkeys(row.model for row in TABLE_5))
    limits = {"max_batch": 2, "runs": 1, "image_size": 32} if bench.toy else {"max_batch": 256, "runs": 10}
    if bench.toy:
        names = names[:1]
    run = bench.run_file("throughput", evaluate={"model": tuple(names), **limits})
    result = measure_throughput(run, say)
    return {
        "precision": result["precision"],
        **{row["model"]: {"images_per_second": round(row["images_per_second"], 1)} for row in result["rows"]},
    }


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "ceilings": figures(ceilings),
    "whole-way": figures(whole_way),
    "compiling": figures(compiling),
    "student-s": figures(student("s")),
    "teacher-16gf": figures(teacher("regnety_160")),
    "student-ti": figures(student("ti")),
    "student-b": figures(student("b")),
    "parity": figures(parity),
    "loader": figures(loader),
    "bits": figures(bits),
    "ray": figures(ray_train),
    "throughput": figures(throughput),
    "teacher-4gf": figures(teacher("regnety_040")),
}
"""By name, the most valuable first."""
