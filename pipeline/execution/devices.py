"""Devices: what a command computes on, and the values of "auto" in the run file there.

A command replaces every "auto" before it plans anything, so that identities, plans, manifests and worker processes know
resolved values only. Existing work keeps its values: where a label set or a run exists, "auto" is the value in its plan
on any device, so work of version 0.1.0 in fp32 is resumed in fp32.
"""

import math
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipeline.execution.ray_session import INLINE, LOCAL, ray_session
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.values import AUTO
from stages.models.precision import chosen_precision
from stages.storage.manifest import binding_plan, read_any_manifest
from stages.storage.store import Store

_ON_CPU = 2
"""Data processes beside a network that computes on the cores itself."""
_MOST = 256
_COMPILING_PAYS = {"steps": 1_000, "views": 1_000_000}
"""From how many steps of a student, and views of a teacher, on the minute of compiling is won back."""
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def run_device(config: RunFile) -> str:
    """Either "cuda" or "cpu", as the run file and this machine have it.

    Raises:
        UserError: if the run file needs a GPU and there is none.
    """
    wanted, there = config.cluster.device, torch.cuda.is_available()
    if wanted == "cuda" and not there and config.cluster.address in (INLINE, LOCAL):
        raise UserError('cluster.device = "cuda": this machine has no CUDA device; set it to "cpu" or "auto"')
    return wanted if wanted != AUTO else "cuda" if there else "cpu"


def device_count(config: RunFile) -> int:
    """Training workers or teachers at once.

    Raises:
        UserError: if the run file leaves it to GPUs of which this machine has none.
    """
    if config.cluster.address == INLINE:
        return 1
    count = config.cluster.devices or (torch.cuda.device_count() if run_device(config) == "cuda" else 1)
    if not count:
        raise UserError(
            "cluster.devices = 0: counts this machine's GPUs, which has none; say how many of the cluster's to use"
        )
    return count


def settled(config: RunFile) -> RunFile:
    """The run file with what suits the devices, or what was begun with, in place of every "auto" but `compile`.

    Raises:
        UserError: as `run_device` and `device_count`, or the cluster is unreachable.
    """
    device = run_device(config)
    teacher = _precision_of(config.teacher.precision, config, f"labels/{config.labels.name}", "teacher")
    student = _precision_of(config.train.precision, config, f"runs/{config.train.name}", "train")
    changes: dict[str, dict[str, Any]] = {
        "teacher": {"precision": chosen_precision(teacher, "teacher", device)},
        "train": {"precision": chosen_precision(student, "student", device)},
    }
    if AUTO in (config.labels.workers, config.train.workers):
        workers = data_processes(config)
        changes["labels"] = {"workers": workers if config.labels.workers == AUTO else config.labels.workers}
        changes["train"] |= {"workers": workers if config.train.workers == AUTO else config.train.workers}
    return changed(config, changes)


def compiled(config: RunFile, *, steps: int = 0, views: int = 0) -> RunFile:
    """The run file with true or false in place of compile = "auto": of a student's steps, or of a teacher's views.

    A label set keeps its first value. Where nothing can be compiled, since torch's compiler needs Triton and a
    C compiler, that is false.
    """
    able = run_device(config) == "cuda" and _can_compile()
    changes: dict[str, dict[str, Any]] = {}
    if config.train.compile == AUTO:
        changes["train"] = {"compile": able and steps >= _COMPILING_PAYS["steps"]}
    if config.teacher.compile == AUTO:
        kept = _planned(config, f"labels/{config.labels.name}", "teacher").get("compile")
        changes["teacher"] = {"compile": able and views >= _COMPILING_PAYS["views"] if kept is None else kept}
    return changed(config, changes)


def changed(config: RunFile, changes: dict[str, dict[str, Any]]) -> RunFile:
    """A run file with other values for some keys, table by table; nothing is checked again."""
    tables = {name: getattr(config, name).model_copy(update=keys) for name, keys in changes.items()}
    return config.model_copy(update=tables)


def data_processes(config: RunFile) -> int:
    """Data processes of each device, where the run file leaves it to the machine.

    A GPU's share of its machine's cores less one, for the process that drives it; 2 beside a network on a CPU, which
    computes on all cores.

    Raises:
        UserError: if there is no cluster at the address.
    """
    if run_device(config) == "cpu":
        return min(_ON_CPU, max(1, cores() // device_count(config)))
    if config.cluster.address in (INLINE, LOCAL):
        share = cores() // device_count(config)
    else:
        with ray_session(config.cluster) as ray:
            share = _smallest_share([node["Resources"] for node in ray.nodes() if node["Alive"]])
    return min(_MOST, max(1, share - 1))


def _smallest_share(nodes: list[dict[str, float]]) -> int:
    """Cores for each GPU of the node that has fewest for each; 2 where no node has any."""
    return min((int(one.get("CPU", 0) // one["GPU"]) for one in nodes if one.get("GPU", 0) >= 1), default=2)


def cores() -> int:
    """Cores this process may use: by its affinity, and by the quota of its container."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, _, period = _CGROUP_QUOTA.read_text().partition(" ")
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return allowed


def device_line(config: RunFile, what: str, *, precision: str, compiled: bool | str, batch: str, workers: Any) -> str:
    """One line for the start of a command: device, precision, compiled or not, batch, workers."""
    device = run_device(config)
    name = f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" and torch.cuda.is_available() else device
    count = f"{device_count(config)} x " if device_count(config) > 1 else ""
    way = f"{precision}, {'compiled' if compiled is True else 'not compiled'}"
    return f"{what} on {count}{name}: {way}, {batch}, {workers} data processes each"


def _precision_of(wanted: str, config: RunFile, folder: str, table: str) -> str:
    return wanted if wanted != AUTO else str(_planned(config, folder, table).get("precision", AUTO))


def _planned(config: RunFile, folder: str, table: str) -> dict[str, Any]:
    """The plan's values for teacher or training, once the first part exists; else nothing."""
    store = Store(config.workspace).child(folder)
    plan = binding_plan(store) or read_any_manifest(store)
    found = plan.made_from.get(table) if plan else None
    return found if isinstance(found, dict) else {}


def _can_compile() -> bool:
    compiler = any(map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))))
    return compiler and find_spec("triton") is not None
