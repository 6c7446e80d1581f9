"""Doctor as a command: whether this machine can run the pipeline, and what to do about what is wrong.

Each check looks at one thing and loads no more than that: only those of torch and Ray load them.
"""

import importlib.metadata
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from schemas.config import RunFile
from schemas.secrets import is_uri
from stages.storage.space import nearest_folder

Say = Callable[[str], None]

OK, WARNING, ERROR = "ok", "warning", "error"
_PYTHON = (3, 11)
_GIB = 2**30
_LITTLE_DISK, _NO_DISK = 20 * _GIB, _GIB
_LITTLE_MEMORY, _NO_MEMORY = 2 * _GIB, _GIB // 8
"""Of shared memory: a container's usual 64 MiB do not hold the batches of data processes."""
_FEW_FILES, _TOO_FEW_FILES = 4096, 512
"""Open files: Ray's processes and data processes hold some hundreds each."""
_FEW_PROCESSES = 1024
"""An embedded Ray starts some hundreds of processes and threads."""
_CONTAINERS_PROCESSES = Path("/sys/fs/cgroup/pids.max")
_SHARED_MEMORY = Path("/dev/shm")
_REINSTALL = "install it as README says: pip install . in the checkout"


class Check(NamedTuple):
    """One thing that was looked at: its name, one of the three states, what was found, what to do ("" = nothing)."""

    name: str
    state: str
    found: str
    fix: str = ""


def doctor(config: RunFile, say: Say) -> dict[str, Any]:
    """Look at everything, and print a line for each.

    Args:
        config: says the workspace, whose disk counts, the device and the cluster's address.
        say: takes lines for the user.

    Returns:
        `ok`, false where something required is wrong, and `checks`.
    """
    checks = []
    for check in _checks(config):
        say(f"{check.state:8} {check.name:14} {check.found}" + (f"; {check.fix}" if check.fix else ""))
        checks.append(check)
    named = [{"check": one.name, "state": one.state, "found": one.found, "fix": one.fix} for one in checks]
    return {"doctor": "machine", "ok": all(one.state != ERROR for one in checks), "checks": named}


def _checks(config: RunFile) -> Iterator[Check]:
    yield check_python(tuple(sys.version_info[:3]))
    yield (torch := check_package("torch"))
    yield check_cuda(config.cluster.device) if torch.state == OK else Check("cuda", WARNING, "not known without torch")
    yield check_package("ray")
    yield check_disk(config.workspace)
    yield check_shared_memory(_SHARED_MEMORY)
    yield check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield check_processes(process_limit(_CONTAINERS_PROCESSES))
    yield check_token(config.cluster.address)


def check_python(version: tuple[int, ...]) -> Check:
    """Whether this Python is new enough."""
    found = ".".join(map(str, version))
    if version >= _PYTHON:
        return Check("python", OK, found)
    return Check("python", ERROR, found, f"make the environment with Python {'.'.join(map(str, _PYTHON))} or newer")


def check_package(name: str) -> Check:
    """Whether a package is installed and can be loaded."""
    try:
        __import__(name)
        return Check(name, OK, importlib.metadata.version(name))
    except ImportError as error:
        return Check(name, ERROR, f"cannot be loaded ({error})", _REINSTALL)
    except OSError as error:  # a shared library of it
        return Check(name, ERROR, f"cannot be loaded ({error})", f"reinstall it: pip install --force-reinstall {name}")


def check_cuda(device: str) -> Check:
    """Whether torch sees GPUs: required where `cluster.device = "cuda"`; expected where NVIDIA's driver is there."""
    import torch

    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
        return Check("cuda", OK, f"{torch.cuda.device_count()} GPUs ({', '.join(names)}), CUDA {torch.version.cuda}")
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    built = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch without CUDA"
    fix = "install a torch for CUDA that the driver takes (nvidia-smi names its version)" if driver else ""
    if device == "cuda":
        return Check(
            "cuda", ERROR, f"no GPU, {built}", fix or 'set cluster.device = "auto", or use a machine with a GPU'
        )
    return Check("cuda", WARNING if driver else OK, f"no GPU, {built}: stages compute on the CPU", fix)


def check_disk(workspace: str) -> Check:
    """Whether the workspace's disk has room."""
    if is_uri(workspace):
        return Check("disk", OK, "the workspace is a store, whose room is not known here")
    folder = nearest_folder(workspace)
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("disk", ERROR, f"{folder}: cannot be written", "name another workspace in the run file")
    state = OK if free >= _LITTLE_DISK else WARNING if free >= _NO_DISK else ERROR
    fix = "" if state == OK else "make room, or name a workspace on another disk; ImageNet's shards take 145 GB"
    return Check("disk", state, f"{free / _GIB:,.1f} GiB free for {Path(workspace).absolute()}", fix)


def check_shared_memory(folder: Path) -> Check:
    """Whether data processes can hand over batches, and Ray its objects."""
    if not folder.is_dir():
        return Check("shared memory", OK, f"no {folder} on this system")
    room = shutil.disk_usage(folder).free
    state = OK if room >= _LITTLE_MEMORY else WARNING if room >= _NO_MEMORY else ERROR
    fix = "" if state == OK else "start the container with --shm-size=8g, or mount -o remount,size=8g /dev/shm as root"
    return Check("shared memory", state, f"{room / _GIB:,.2f} GiB free in {folder}", fix)


def check_open_files(limit: int) -> Check:
    """Whether processes may hold enough files open; `limit` is the soft one, below 0 for none."""
    if limit < 0 or limit >= _FEW_FILES:
        return Check("open files", OK, "unlimited" if limit < 0 else f"{limit:,}")
    state = WARNING if limit >= _TOO_FEW_FILES else ERROR
    return Check("open files", state, f"{limit:,}", "type ulimit -n 65536 in this shell first")


def process_limit(container: Path) -> int:
    """Processes and threads that this user, or this container by its `pids.max`, may have; -1 for no limit."""
    limits = [resource.getrlimit(resource.RLIMIT_NPROC)[0]]
    if container.is_file() and (text := container.read_text().strip()).isdigit():
        limits.append(int(text))
    return min((limit for limit in limits if limit >= 0), default=-1)


def check_processes(limit: int) -> Check:
    """Whether this user may start the processes and threads of an embedded Ray; `limit` is below 0 for none."""
    if limit < 0 or limit >= _FEW_PROCESSES:
        return Check("processes", OK, "unlimited" if limit < 0 else f"{limit:,}")
    fix = "type ulimit -u 4096 in this shell first, or let the container have more (--pids-limit), or --address inline"
    return Check("processes", WARNING, f"{limit:,}", fix)


def check_token(address: str) -> Check:
    """Whether the command has the token of an existing Ray cluster; an embedded Ray makes its own."""
    if address in ("local", "inline"):
        return Check("ray token", OK, f"cluster.address = {address} needs none")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))
    where = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(file) if file.is_file() else ""
    if where:
        mode = os.environ.get("RAY_AUTH_MODE") == "token"
        return Check("ray token", OK if mode else WARNING, where, "" if mode else "set RAY_AUTH_MODE=token to use it")
    fix = "if the cluster asks for one, set RAY_AUTH_MODE=token, and put it into RAY_AUTH_TOKEN or ~/.ray/auth_token"
    return Check("ray token", WARNING, "none", fix)
