"""The sections of benchmarks/gpu.py: each takes a `Bench`, runs in a process of its own and returns figures.

Nothing here opens the GPU when it is imported; sections that start runs of their own in forks never open it themselves.
"""

import hashlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline import run as stages
from pipeline.measuring import throughput as measure_throughput
from schemas.config import RunFile
from schemas.paper import TABLE_5
from schemas.run_file import parse_run
from schemas.toml_text import toml_text
from stages.batches import Batch
from stages.dataset import Split
from stages.flops import TRAINING, forward_flops, peak_flops
from stages.label import Labeller
from stages.labelset import LabelSpec
from stages.loader import load, moved, on_device
from stages.plan import plan_training
from stages.replay.mix import Mix, mix, normalise
from stages.teacher import Teacher
from stages.train import Trainer, train
from stages.trust import stability

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = {"ti": "deit_tiny", "s": "deit_small", "b": "deit_base"}
_IMAGES = 2304
"""At least, so that the largest batch is no more than an epoch: photographs are copied until there are."""
TOY_VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


Variant = Callable[[], dict[str, Any]]
"""What is measured in one process; its figures."""


@dataclass(frozen=True)
class Bench:
    """Where sections work, on what, and how large.

    Attributes:
        folder: for images and workspaces.
        photographs: a folder of one folder a class; "" = pictures are made.
        weights: of tf_efficientnet_lite0; "" = random ones.
        toy: the size at which a CPU takes seconds.
    """

    folder: Path
    photographs: str
    weights: str
    toy: bool

    @cached_property
    def device(self) -> torch.device:
        """Of this process; asked for in a section only."""
        return torch.device("cpu" if self.toy else "cuda")

    @property
    def side(self) -> int:
        """Of a view, in pixels."""
        return 32 if self.toy else 224

    @property
    def workers(self) -> int:
        """Data processes: all cores but the one that drives the GPU."""
        return 1 if self.toy else max(1, len(os.sched_getaffinity(0)) - 1)

    def batch(self, size: str) -> int:
        """Views of a step, which fit the memory of an 80 GB card in fp32."""
        return 8 if self.toy else {"ti": 1024, "s": 1024, "b": 512}[size]

    def student(self, size: str) -> dict[str, Any]:
        """The run file's [student] of a distilled student."""
        return {"model": f"{STUDENTS[size]}_distilled_patch16_224", "extra": TOY_VIT if self.toy else {}}

    def teacher(self, name: str) -> dict[str, Any]:
        """The run file's [teacher] of a network, with random weights unless they were given."""
        model = "regnety_002" if self.toy and name.startswith("regnety") else name
        file = self.weights if self.weights and name == "tf_efficientnet_lite0" else str(self._random(model))
        return {"model": model, "checkpoint": file, "batch_size": 8 if self.toy else 256}

    def _random(self, model: str) -> Path:
        path = self.folder / f"{model}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(timm.create_model(model, num_classes=self.classes).state_dict(), path)
        return path

    @property
    def classes(self) -> int:
        """Of the photographs: ImageNet's where they lie in folders of its names, so that the weights fit."""
        return 1000 if self.photographs else 8

    @cached_property
    def source(self) -> list[Path]:
        """The photographs, or pictures that are made; a few of each class at toy size."""
        from loader import generate  # asks for a GPU when it is imported, which must not be before the fork

        files = _files(Path(self.photographs or generate(self.folder / "generated")))
        return files[:: len(files) // 16] if self.toy else files

    def images(self, copies: int) -> str:
        """An image folder with so many copies of each photograph, under names of their own."""
        target = self.folder / f"images-{copies}"
        if not target.exists():
            half = Path(f"{target}.part")
            shutil.rmtree(half, ignore_errors=True)
            for file, copy in itertools.product(self.source, range(copies)):
                path = half / file.parent.name / f"{copy:03d}-{file.name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, path)
            half.replace(target)
        return str(target)

    def run_file(self, name: str, *, copies: int = 0, **tables: dict[str, Any]) -> RunFile:
        """A run file over the photographs, with changes table by table."""
        enough = 1 if self.toy else math.ceil(_IMAGES / len(self.source))
        values: dict[str, Any] = {
            "source": {
                "train": self.images(copies or enough),
                "classes": "imagenet-1k" if self.photographs else "",
            },
            "shards": {"samples_per_shard": 64 if self.toy else 512},
            "views": {"image_size": self.side},
            "teacher": self.teacher("tf_efficientnet_lite0"),
            "labels": {"views": 3, "workers": self.workers},
            "student": self.student("ti"),
            "train": {"batch_size": self.batch("ti"), "epochs": 1000, "reuse_views": True, "workers": self.workers},
            "cluster": {"address": "inline"},
        }
        for table, keys in tables.items():
            values[table] = values.get(table, {}) | keys
        return parse_run({"workspace": str(self.folder / name), **values}, "benchmark")

    def prepared(self) -> RunFile:
        """A run file whose photographs are sharded and labelled, the first time it is asked for."""
        run = self.run_file("work")
        if not Path(run.workspace, "labels/teacher/manifest.json").exists():
            stages.shard(run, _say)
            stages.label(run, _say)
        return run


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _changed(run: RunFile, **tables: dict[str, Any]) -> RunFile:
    return run.model_copy(update={name: getattr(run, name).model_copy(update=keys) for name, keys in tables.items()})


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(do: Callable[[], Any], *, count: int, turns: int = 3, warm_up: int = 3) -> float:
    """Seconds of one call: median over turns of `count` calls each, between synchronisations, after warming up."""
    for _ in range(warm_up):
        do()
    took = []
    for _ in range(turns):
        _wait()
        start = time.perf_counter()
        for _ in range(count):
            do()
        _wait()
        took.append((time.perf_counter() - start) / count)
    return statistics.median(took)


def _peak_mib() -> int | None:
    return torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else None


def _figures(do: Callable[[Bench], dict[str, Any]]) -> Callable[[Bench], dict[str, Any]]:
    return lambda bench: {"figures": do(bench)}


def _attempt(do: Variant) -> dict[str, Any]:
    """A variant's figures, or what it failed of: the next one is tried all the same."""
    try:
        return do()
    except Exception as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {"error": f"{type(error).__name__}: {str(error).strip()[-300:]}"}


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


# ---- compiling ahead: many networks at once, into the compiler's cache on disk ------------------------------------


def compiling(bench: Bench) -> dict[str, Any]:
    """Compile what later sections time, all at once in processes of their own; seconds of each."""
    in_child(lambda: {"prepared": bool(bench.prepared())})
    wanted: dict[str, Variant] = {f"student-{size}": partial(_compile_student, bench, size) for size in STUDENTS}
    wanted |= {name: partial(_compile_teacher, bench, name) for name in ("regnety_160", "regnety_040")}
    return _at_once(wanted)


def _compile_student(bench: Bench, size: str) -> dict[str, Any]:
    start = time.perf_counter()
    trainer, batch = _trainer(bench, size, "bf16", compile_=True)
    trainer.step(batch)
    _wait()
    return {"seconds": round(time.perf_counter() - start, 1)}


def _compile_teacher(bench: Bench, name: str) -> dict[str, Any]:
    start = time.perf_counter()
    teacher = _teacher(bench, name, "fp16", compile_=True)
    teacher.logits(*_ready_views(bench, teacher.settings.batch_size))
    return {"seconds": round(time.perf_counter() - start, 1)}


def _at_once(wanted: dict[str, Variant]) -> dict[str, Any]:
    """What several functions return, each in a fork."""
    context = multiprocessing.get_context("fork")
    pipes = {name: context.Pipe(duplex=False) for name in wanted}
    children = {name: context.Process(target=_child, args=(wanted[name], pipes[name][1])) for name in wanted}
    for name, child in children.items():
        child.start()
        pipes[name][1].close()
    found = {}
    for name, child in children.items():
        try:
            found[name] = pipes[name][0].recv()
        except EOFError:
            child.join()
            found[name] = {"error": f"its process ended with {child.exitcode}"}
        child.join()
    return found


def _child(do: Variant, answer: Any) -> None:
    answer.send(_attempt(do))
    answer.close()
    os._exit(0)


def in_child(do: Variant) -> dict[str, Any]:
    """What a function returns that opens the GPU in a fork of this process, which does not."""
    found: dict[str, Any] = _at_once({"it": do})["it"]
    return found


# ---- (b) the whole way --------------------------------------------------------------------------------------------


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
    run = _changed(run, source={"val": run.source.train})
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
    """What a command says with --json, without its long parts; killed with all its processes once `kill` says so."""
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


# ---- (c) students -------------------------------------------------------------------------------------------------


def student(size: str) -> Callable[[Bench], dict[str, Any]]:
    """The section of one of the paper's sizes, distilled."""

    def section(bench: Bench) -> dict[str, Any]:
        ways = [("bf16", True), ("bf16", False), ("fp32", False), ("tf32", False), ("fp16", False)]
        if bench.toy:
            ways = [("bf16", True), ("fp32", False)]
        found: dict[str, Any] = {"batch": bench.batch(size), "ready": {}}
        for precision, compile_ in ways:
            name = f"{precision}{' compiled' if compile_ else ''}"
            found["ready"][name] = in_child(partial(_bare_student, bench, size, precision, compile_))
        found |= in_child(partial(_fed_student, bench, size))
        return found

    return section


def _trainer(bench: Bench, size: str, precision: str, compile_: bool) -> tuple[Trainer, Batch]:
    """A trainer, and its first batch on the device."""
    run = _changed(
        bench.prepared(),
        train={"batch_size": bench.batch(size), "precision": precision, "compile": compile_, "name": f"student-{size}"},
    )
    run = run.model_copy(update={"student": parse_run({"student": bench.student(size)}, "benchmark").student})
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=bench.device)
    return trainer, moved(trainer.data[0], bench.device)


def _rates(trainer: Trainer, batch: int, took: float) -> dict[str, Any]:
    peak = peak_flops(trainer.device)
    flops = TRAINING * forward_flops(trainer.classifier, trainer.run.views.image_size, trainer.device)
    used = {"mfu": round(batch / took * flops / peak, 4)} if peak else {}
    return {"views_per_second": round(batch / took, 1), "milliseconds": round(1e3 * took, 2)} | used


def _bare_student(bench: Bench, size: str, precision: str, compile_: bool) -> dict[str, Any]:
    """Steps on one batch that is on the device before the clock starts."""
    trainer, batch = _trainer(bench, size, precision, compile_)
    start = time.perf_counter()
    trainer.step(batch)
    _wait()
    first = time.perf_counter() - start
    took = seconds(lambda: trainer.step(batch), count=2 if bench.toy else 6)
    return _rates(trainer, len(batch.views), took) | {"peak_mib": _peak_mib(), "first_step_seconds": round(first, 1)}


def _fed_student(bench: Bench, size: str) -> dict[str, Any]:
    """Compiled bf16 steps from shards and decisions, and on a ready batch with the teacher in the loop."""
    trainer, ready = _trainer(bench, size, "bf16", compile_=True)
    order, pin = range(1, trainer.plan.steps), bench.device.type == "cuda"
    batches = on_device(load(trainer.data, workers=bench.workers, order=order, pin=pin), bench.device)
    trainer.step(ready)
    views = len(ready.views)
    ahead, steps = (4, 4) if bench.toy else (2 * bench.workers + 4, 40)
    for _ in range(ahead):
        trainer.step(next(batches))
    waited = 0.0
    _wait()
    start, before = time.perf_counter(), _cpu_seconds()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        trainer.step(batch)
    _wait()
    took = time.perf_counter() - start
    fed = _rates(trainer, views, took / steps) | {"waiting": round(waited / took, 4)}
    if (after := _cpu_seconds()) is not None and before is not None:
        fed["cores_busy"] = round((after - before) / took, 1)
    online = _teacher(bench, "regnety_160", "fp16", compile_=False)

    def online_step() -> None:
        decisions = online.queued(ready.views, ready.mix).argmax(1)
        trainer.step(ready._replace(decisions=decisions.clone()))

    one = seconds(lambda: trainer.step(ready), count=2 if bench.toy else 6)
    both = seconds(online_step, count=2, turns=2, warm_up=2)
    return {
        "from_shards": fed,
        "of_ready": round(one / (took / steps), 4),
        "online": _rates(trainer, views, both) | {"teacher": "regnety_160, fp16, eager"},
        "times_online": round(both / (took / steps), 3),
    }


def _cpu_seconds() -> float | None:
    """Processor time of the whole machine but idling, since its start; None where that is not told."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


# ---- (d) teachers -------------------------------------------------------------------------------------------------


def teacher(name: str) -> Callable[[Bench], dict[str, Any]]:
    """The section of one teacher: bare, in the label stage, and online the way timm would."""

    def section(bench: Bench) -> dict[str, Any]:
        ways = [("fp16", True), ("bf16", True), ("fp16", False), ("bf16", False), ("tf32", False), ("fp32", False)]
        if bench.toy:
            ways = [("bf16", True), ("fp32", False)]
        found: dict[str, Any] = {"batch": 8 if bench.toy else 256, "ready": {}}
        for precision, compile_ in ways:
            key = f"{precision}{' compiled' if compile_ else ''}"
            found["ready"][key] = in_child(partial(_bare_teacher, bench, name, precision, compile_))
        found["ready"]["fp16 not channels last"] = in_child(partial(_bare_teacher, bench, name, "fp16", False, True))
        found["label_stage"] = in_child(partial(_label_stage, bench, name))
        found["online_as_timm"] = in_child(partial(_timm_online, bench, name))
        if bare := found["ready"].get("fp16 compiled", {}).get("views_per_second"):
            for way in ("label_stage", "online_as_timm"):
                if "views_per_second" in found[way]:
                    found[way]["of_bare_compiled"] = round(found[way]["views_per_second"] / bare, 4)
        return found

    return section


def _teacher(bench: Bench, name: str, precision: str, compile_: bool) -> Teacher:
    precision = "fp32" if bench.toy else precision
    values = bench.teacher(name) | {"precision": precision, "compile": compile_}
    settings = parse_run({"teacher": values}, "benchmark").teacher
    classes = bench.classes
    return Teacher(settings, workspace="", num_classes=classes, image_size=bench.side, device=bench.device)


def _ready_views(bench: Bench, count: int) -> tuple[Tensor, Mix]:
    torch.manual_seed(0)
    views = torch.randint(0, 256, (count, bench.side, bench.side, 3), dtype=torch.uint8, device=bench.device)
    lam = torch.rand(count // 2, device=bench.device)
    return views, Mix(lam, lam, torch.zeros(count // 2, 4, dtype=torch.int32, device=bench.device))


def _bare_teacher(bench: Bench, name: str, precision: str, compile_: bool, contiguous: bool = False) -> dict[str, Any]:
    """Forward passes on ready views, which the same function normalises and mixes; and of the network alone."""
    asked = _teacher(bench, name, precision, compile_)
    views, how = _ready_views(bench, asked.settings.batch_size)
    if contiguous:
        asked.models[0].to(memory_format=torch.contiguous_format)
    model = asked.models[0]
    images = mix(normalise(views, model.mean, model.std), how)
    alone = torch.compile(model, dynamic=False) if compile_ else model
    images = images.contiguous() if contiguous else images

    @torch.inference_mode()
    def network() -> None:
        with asked.precision.switches(search=True), asked.precision.autocast():
            alone(images)

    count = 2 if bench.toy else 10
    bare = seconds(network, count=count)
    took = seconds(lambda: asked.queued(views, how), count=count)
    rate = {"views_per_second": round(len(views) / took, 1), "network_alone": round(len(views) / bare, 1)}
    if peak := peak_flops(bench.device):
        rate["mfu"] = round(len(views) / took * forward_flops(model, bench.side, bench.device) / peak, 4)
    return rate | {"peak_mib": _peak_mib()}


def _label_stage(bench: Bench, name: str) -> dict[str, Any]:
    """Views a second of the stage's own code, parts and threads as a command has them, once it is under way."""
    run = bench.prepared()
    settings = bench.teacher(name) | {"precision": "fp32" if bench.toy else "fp16", "compile": not bench.toy}
    run = run.model_copy(update={"teacher": parse_run({"teacher": settings}, "benchmark").teacher})
    split = Split.open(run.workspace, "train")
    labeller = Labeller(run, split, bench.device.type)
    passes, parts = (1, 2) if bench.toy else (10, 4)
    specs = iter([LabelSpec(nth % len(split.rows), 10, 10 + passes) for nth in range(parts + 1)])
    ended: list[tuple[float, int]] = []

    def lane() -> None:
        for spec in specs:  # one lock for both: a generator of a list hands out one at a time
            staging = bench.folder / f"staging-{spec.shard}-{threading.get_ident()}"
            staging.mkdir(parents=True, exist_ok=True)
            rows = labeller(spec, staging).rows
            ended.append((time.perf_counter(), rows))

    threads = [threading.Thread(target=lane) for _ in range(1 if bench.toy else 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended.sort()
    if len(ended) < parts + 1:
        raise RuntimeError("a part failed; its traceback is on stderr")
    views = sum(rows for _, rows in ended[1:])
    took = ended[-1][0] - ended[0][0]
    return {"views_per_second": round(views / took, 1), "parts": parts, "views": views, "workers": bench.workers}


def _timm_online(bench: Bench, name: str) -> dict[str, Any]:
    """Timm's loader as DeiT calls it, its mixup, and the eager network under fp16 autocast."""
    from loader import timm_side

    asked, run = _teacher(bench, name, "fp16", compile_=False), bench.prepared()
    batch, batches = asked.settings.batch_size, 2 if bench.toy else 12
    loaded, mixed = timm_side(run.source.train, bench.workers, batch, batches, side=bench.side)

    @torch.inference_mode()
    def decide(one: Any) -> None:
        images, _ = mixed(one)
        with asked.precision.switches(search=True), asked.precision.autocast():
            asked.models[0](images.to(memory_format=torch.channels_last)).fused.argmax(1)

    for _ in range(2 if bench.toy else 6):
        decide(next(loaded))
    _wait()
    start = time.perf_counter()
    for _ in range(batches):
        decide(next(loaded))
    _wait()
    return {"views_per_second": round(batch * batches / (time.perf_counter() - start), 1)}


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
    run = _changed(bench.prepared(), train={"batch_size": 8 if bench.toy else 256})
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
    return _changed(bench.prepared(), train=train_)


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
    names = ["resnet18", "deit_tiny_patch16_224"] if bench.toy else list(dict.fromkeys(name for name, _ in TABLE_5))
    limits = {"max_batch": 2, "runs": 1, "image_size": 32} if bench.toy else {"max_batch": 256, "runs": 10}
    if bench.toy:
        names = names[:1]
    run = bench.run_file("throughput", evaluate={"model": tuple(names), **limits})
    result = measure_throughput(run, _say)
    return {
        "precision": result["precision"],
        **{row["model"]: {"images_per_second": round(row["images_per_second"], 1)} for row in result["rows"]},
    }


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "ceilings": _figures(ceilings),
    "whole-way": _figures(whole_way),
    "compiling": _figures(compiling),
    "student-s": _figures(student("s")),
    "teacher-16gf": _figures(teacher("regnety_160")),
    "student-ti": _figures(student("ti")),
    "student-b": _figures(student("b")),
    "parity": _figures(parity),
    "loader": _figures(loader),
    "bits": _figures(bits),
    "ray": _figures(ray_train),
    "throughput": _figures(throughput),
    "teacher-4gf": _figures(teacher("regnety_040")),
}
"""By name, the most valuable first."""
