"""Estimate as a command: a short probe of this machine, and what the run file will take and store by it.

Nothing is written into the workspace: what the probe writes is in temporary folders, which it deletes.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.commands.estimate_lines import Probed, assumptions_of, forecast_of, lines_of, savings_of
from pipeline.execution.devices import changed, cores, device_count, run_device, settled
from pipeline.execution.progress import note
from schemas.config import RunFile
from schemas.secrets import is_uri
from schemas.values import AUTO
from stages.estimate.facts import Facts, known_images
from stages.estimate.forecast import Costs, Forecast, Machine, Starts, cores_wanted, rendering
from stages.estimate.networks import (
    StudentFacts,
    probe_student,
    probe_teacher,
    student_facts,
    teacher_flops,
    teacher_members,
)
from stages.estimate.probe import probe_data, probe_disk
from stages.estimate.rates import Device, read_rates
from stages.estimate.sizes import label_bytes
from stages.estimate.timing import BatchCost, is_busy
from stages.models.precision import chosen_precision
from stages.storage.hours import device_name
from stages.storage.space import free_bytes, nearest_folder
from stages.train.plan import TAUGHT

Say = Callable[[str], None]
_SAMPLE = 64
_HOUR = 3600.0
_SHARES = {"data": 0.25, "teacher": 0.2, "student": 0.4, "half": 0.1, "disk": 0.05}
"""Of the probe's seconds."""
_HALF = {"cpu": ("bf16", "bf16"), "cuda": ("fp16", "bf16")}
"""Half precision of teacher and student on a kind of device."""


def estimate(
    config: RunFile,
    say: Say,
    *,
    rates: str = "",
    price: float | None = None,
    seconds: float = 20.0,
    images: int = 0,
) -> dict[str, Any]:
    """Probe this machine and forecast the run file's hours and bytes.

    Args:
        config: the run file.
        say: takes lines for the user.
        rates: a record of `benchmarks/gpu.py`, where the device is elsewhere; "" = this machine's device.
        price: of one device for an hour; None = prices are not counted.
        seconds: that the probe may take, about.
        images: so many made photographs in place of shards and source; 0 = none.

    Returns:
        `stages`, `cores_a_device`, `bytes`, `savings`, `price`, `assumptions`, and what was `measured`.

    Raises:
        UserError: if there are no images, a network cannot be built, or the record has no rate.
    """
    device = read_rates(rates) if rates else None
    config = _settled(config, device)
    facts = known_images(config, _SAMPLE, images)
    note(f"estimate: {facts.origin}; probing this machine for about {seconds:.0f} s")
    probed = _probed(config, facts, device, seconds)
    whole = forecast_of(probed, probed.config)
    result = _result(probed, whole, price)
    for line in lines_of(probed, whole, result):
        say(line)
    return result


def _settled(config: RunFile, device: Device | None) -> RunFile:
    """The run file with a value for every "auto": this machine's, or a GPU's."""
    if device is None:
        return settled(config)
    workers = max(1, device.cores - 1)
    return changed(
        config,
        {
            "teacher": {"precision": chosen_precision(config.teacher.precision, "teacher", "cuda")},
            "train": {
                "precision": chosen_precision(config.train.precision, "student", "cuda"),
                "workers": workers if config.train.workers == AUTO else config.train.workers,
            },
            "labels": {"workers": workers if config.labels.workers == AUTO else config.labels.workers},
        },
    )


def _probed(config: RunFile, facts: Facts, device: Device | None, seconds: float) -> Probed:
    starts, busy = Starts(_start_of_packing(), time.process_time()), is_busy()
    student = student_facts(config, facts.classes)
    kind = "cuda" if device else run_device(config)
    devices = (config.cluster.devices or 1) if device else device_count(config)
    own = device.cores if device else cores() / devices
    machine = Machine(devices, own, kind == "cpu", starts)
    data = probe_data(config, facts.sample, facts.classes, seconds * _SHARES["data"])
    rows = max(facts.rows)
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = Path(elsewhere) if is_uri(config.workspace) else nearest_folder(config.workspace)
        disk = probe_disk(folder, seconds * _SHARES["disk"])
    teacher, taught, forward, notes = _networks(config, facts, student, device, kind, devices, seconds, busy)
    labels = label_bytes(config, facts.classes, rows)
    costs = Costs(data, teacher, taught, forward, disk, labels)
    name = device.name if device else device_name(kind)
    return Probed(config, facts, student, costs, machine, name, busy, notes)


def _start_of_packing() -> float:
    """Core seconds until `shard` begins, which loads no torch: those of a process that loads what it needs."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import pipeline.commands.shard"], env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _networks(
    config: RunFile,
    facts: Facts,
    student: StudentFacts,
    device: Device | None,
    kind: str,
    devices: int,
    seconds: float,
    busy: bool,
) -> tuple[dict[str, BatchCost], dict[str, BatchCost], BatchCost, list[str]]:
    """What teacher and student take in their own and in half precision, and what an evaluation takes."""
    teacher: dict[str, BatchCost] = {}
    students: dict[str, BatchCost] = {}
    taught = config.train.distillation in TAUGHT
    half_teacher, half_student = _HALF[kind]
    own, its = config.teacher.precision, config.train.precision
    members = teacher_members(config, facts.classes) if taught else []
    if device is not None:
        for precision in dict.fromkeys((own, half_teacher)) if taught else ():
            teacher[precision] = device.teacher(config, teacher_flops(members), precision)
        for precision in dict.fromkeys((its, half_student)):
            students[precision] = device.student(config, student.flops, precision)
        strict = device.student(config, student.flops, "fp32")
        forward = BatchCost(strict.fixed, strict.each.times(1 / 3), 0, strict.note)
        named = [teacher[own].note] if taught else []
        return teacher, students, forward, [*named, students[its].note]
    share = config.train.batch_size // devices
    found = probe_student(config, facts.classes, its, share, seconds * _SHARES["student"], kind, busy)
    students[its] = found.step
    half = seconds * _SHARES["half"] / 2
    if its != half_student:
        students[half_student] = probe_student(config, facts.classes, half_student, share, half, kind, busy).step
    if taught:
        for precision, budget in ((own, seconds * _SHARES["teacher"]), (half_teacher, half)):
            if precision not in teacher:
                teacher[precision] = probe_teacher(config, members, precision, budget, kind, busy)
    return teacher, students, found.forward, []


def _result(probed: Probed, whole: Forecast, price: float | None) -> dict[str, Any]:
    config, costs, data = probed.config, probed.costs, probed.costs.data
    student = costs.student[config.train.precision].per_view(max(2, config.train.batch_size // probed.machine.devices))
    wanted = {"train": cores_wanted(student, rendering(config, probed.facts, data))}
    core = {"train": 1 / data.train_view, "train_decoded": 1 / data.cached_view, "label-teacher": 1 / data.label_view}
    rates = {"student": 1 / student.seconds}
    if "label-teacher" in whole.stages:
        teacher = costs.teacher[config.teacher.precision].per_view(config.teacher.batch_size)
        wanted["label-teacher"] = cores_wanted(teacher, data.label_view)
        rates["teacher"] = 1 / teacher.seconds
    bytes_ = {name: round(one.bytes) for name, one in whole.stages.items() if one.bytes}
    stages = {name: one.to_json() for name, one in whole.stages.items()}
    return {
        "estimate": "plan",
        "images": probed.facts.images,
        "val_images": probed.facts.val_images,
        "classes": probed.facts.classes,
        "shards": len(probed.facts.rows),
        "device": probed.device,
        "devices": probed.machine.devices,
        "precision": {"teacher": config.teacher.precision, "student": config.train.precision},
        "stages": stages,
        "steps": whole.steps,
        "checkpoints": whole.checkpoints,
        "hours": sum(one.seconds for one in whole.stages.values()) / _HOUR,
        "device_hours": whole.device_seconds / _HOUR,
        "views_per_second_a_core": core,
        "views_per_second_a_device": rates,
        "cores_a_device": wanted,
        "bytes": bytes_ | {"a_checkpoint": probed.student.bytes.checkpoint, "decoded_cache": round(whole.cached_bytes)},
        "free_bytes": free_bytes(config.workspace),
        "bytes_a_view": costs.labels.each,
        "savings": savings_of(probed, whole),
        "price": _price(whole, price),
        "assumptions": assumptions_of(probed),
    }


def _price(whole: Forecast, price: float | None) -> dict[str, float] | None:
    if price is None:
        return None
    stages = {name: price * one.device_seconds / _HOUR for name, one in whole.stages.items() if one.device_seconds}
    return {"an_hour": price, **stages, "total": sum(stages.values())}
