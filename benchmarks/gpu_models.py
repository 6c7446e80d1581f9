"""Sections of benchmarks/gpu.py about networks: students and teachers, bare, fed and online."""

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_bench import STUDENTS, Bench, Variant, at_once, changed, in_child, peak_mib, seconds, wait
from torch import Tensor

from schemas.run_file import parse_run
from stages.data.loader import load, moved, on_device
from stages.data.split import Split
from stages.label.label_set import LabelSpec
from stages.label.labeller import Labeller
from stages.models.flops import TRAINING, forward_flops, peak_flops
from stages.models.teacher import Teacher
from stages.replay.mix import Mix, mix, normalise
from stages.train.dataset import Batch
from stages.train.plan import plan_training
from stages.train.trainer import Trainer

# ---- compiling ahead: many networks at once, into the compiler's cache on disk ------------------------------------


def compiling(bench: Bench) -> dict[str, Any]:
    """Compile what later sections time, all at once in processes of their own; seconds of each."""
    in_child(lambda: {"prepared": bool(bench.prepared())})
    wanted: dict[str, Variant] = {f"student-{size}": partial(_compile_student, bench, size) for size in STUDENTS}
    wanted |= {name: partial(_compile_teacher, bench, name) for name in ("regnety_160", "regnety_040")}
    return at_once(wanted)


def _compile_student(bench: Bench, size: str) -> dict[str, Any]:
    start = time.perf_counter()
    trainer, batch = trainer_of(bench, size, "bf16", compile_=True)
    trainer.step(batch)
    wait()
    return {"seconds": round(time.perf_counter() - start, 1)}


def _compile_teacher(bench: Bench, name: str) -> dict[str, Any]:
    start = time.perf_counter()
    teacher = teacher_of(bench, name, "fp16", compile_=True)
    teacher.logits(*_ready_views(bench, teacher.settings.batch_size))
    return {"seconds": round(time.perf_counter() - start, 1)}


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


def trainer_of(bench: Bench, size: str, precision: str, compile_: bool) -> tuple[Trainer, Batch]:
    """A trainer, and its first batch on the device."""
    run = changed(
        bench.prepared(),
        train={"batch_size": bench.batch(size), "precision": precision, "compile": compile_, "name": f"student-{size}"},
    )
    run = run.model_copy(update={"student": parse_run({"student": bench.student(size)}, "benchmark").student})
    trainer = Trainer(run, plan_training(run, 1), rank=0, world=1, device=bench.device)
    return trainer, moved(trainer.data[0], bench.device)


def _rates(trainer: Trainer, batch: int, took: float) -> dict[str, Any]:
    peak = peak_flops(trainer.device)
    flops = TRAINING * forward_flops(trainer.classifier, trainer.config.views.image_size, trainer.device)
    used = {"mfu": round(batch / took * flops / peak, 4)} if peak else {}
    return {"views_per_second": round(batch / took, 1), "milliseconds": round(1e3 * took, 2)} | used


def _bare_student(bench: Bench, size: str, precision: str, compile_: bool) -> dict[str, Any]:
    """Steps on one batch that is on the device before the clock starts."""
    trainer, batch = trainer_of(bench, size, precision, compile_)
    start = time.perf_counter()
    trainer.step(batch)
    wait()
    first = time.perf_counter() - start
    took = seconds(lambda: trainer.step(batch), count=2 if bench.toy else 6)
    return _rates(trainer, len(batch.views), took) | {"peak_mib": peak_mib(), "first_step_seconds": round(first, 1)}


def _fed_student(bench: Bench, size: str) -> dict[str, Any]:
    """Compiled bf16 steps from shards and decisions, and on a ready batch with the teacher in the loop."""
    trainer, ready = trainer_of(bench, size, "bf16", compile_=True)
    order, pin = range(1, trainer.plan.steps), bench.device.type == "cuda"
    workers = 1 if bench.toy and size == "s" else bench.workers  # once, at toy size
    batches = on_device(load(trainer.data, workers=workers, order=order, pin=pin), bench.device)
    trainer.step(ready)
    views = len(ready.views)
    ahead, steps = (4, 4) if bench.toy else (2 * bench.workers + 4, 40)
    for _ in range(ahead):
        trainer.step(next(batches))
    waited = 0.0
    wait()
    start, before = time.perf_counter(), _cpu_seconds()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        trainer.step(batch)
    wait()
    took = time.perf_counter() - start
    fed = _rates(trainer, views, took / steps) | {"waiting": round(waited / took, 4)}
    if (after := _cpu_seconds()) is not None and before is not None:
        fed["cores_busy"] = round((after - before) / took, 1)
    online = teacher_of(bench, "regnety_160", "fp16", compile_=False)

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


def teacher_of(bench: Bench, name: str, precision: str, compile_: bool) -> Teacher:
    """One of the bench's teachers; in fp32 at toy size."""
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
    asked = teacher_of(bench, name, precision, compile_)
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
    return rate | {"peak_mib": peak_mib()}


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

    asked, run = teacher_of(bench, name, "fp16", compile_=False), bench.prepared()
    batch, batches = asked.settings.batch_size, 2 if bench.toy else 12
    loaded, mixed = timm_side(run.source.train, bench.workers, batch, batches, side=bench.side)

    @torch.inference_mode()
    def decide(one: Any) -> None:
        images, _ = mixed(one)
        with asked.precision.switches(search=True), asked.precision.autocast():
            asked.models[0](images.to(memory_format=torch.channels_last)).fused.argmax(1)

    for _ in range(2 if bench.toy else 6):
        decide(next(loaded))
    wait()
    start = time.perf_counter()
    for _ in range(batches):
        decide(next(loaded))
    wait()
    return {"views_per_second": round(batch * batches / (time.perf_counter() - start), 1)}
