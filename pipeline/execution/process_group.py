"""torch's process group of a training, joined without an open listener.

Whoever reaches torch's TCP store reads and writes keys without a token. So processes of one host meet in a file, in a
folder of their own that no other user may enter, and talk over the loopback interface. Those of several hosts meet at
a TCP store, which listens at the address by which the cluster knows rank 0's node, and not on all interfaces: keep that
network closed. Rank 0 sends the address to the others through an actor on Ray. Rejected: Ray Train's own setup, whose
store listens on all interfaces, for a single process too.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from schemas.errors import IncompleteError
from stages.storage.locks import scratch_folder

_PREFIX = ".deit-pipeline-group-"
_TIMEOUT = timedelta(minutes=30)
_MEETING_SECONDS = 120.0
_LOOPBACK = "lo"
_stores: Any = dist  # whose stores are public, and in no list of what it exports


@contextmanager
def process_group(
    *,
    rank: int,
    world: int,
    device: torch.device,
    alone: bool,
    root: Path | None,
    host: str,
    announce: Callable[[str], None],
    meeting: Callable[[], str],
) -> Iterator[None]:
    """Join the processes of a training; a single one needs no group.

    Args:
        rank: of this process.
        world: number of processes.
        device: of this process: NCCL joins GPUs, gloo CPUs.
        alone: whether all processes are on this host.
        root: where the folder is made in which they meet; None = where temporary files go.
        host: by which the others know this one.
        announce: called on rank 0 with the place to meet.
        meeting: asked by the others for that place, again while it is "".

    Raises:
        IncompleteError: if rank 0 announces none.
    """
    if world == 1:
        yield
        return
    if alone:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, _LOOPBACK)  # of this process, which Ray has started for this training
    with scratch_folder(_PREFIX, root) as folder:
        store = _store(rank, world, alone, host, folder, announce, meeting)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _store(
    rank: int,
    world: int,
    alone: bool,
    host: str,
    folder: Path,
    announce: Callable[[str], None],
    meeting: Callable[[], str],
) -> Any:
    if rank == 0:
        if alone:
            place = str(folder / "store")
            announce(place)
            return _stores.FileStore(place, world)
        store, place = listening_store(host, world)
        announce(place)
        return store
    place = _asked(meeting)
    if alone:
        return _stores.FileStore(place, world)
    name, _, port = place.rpartition(":")
    return _stores.TCPStore(name, int(port), world, is_master=False, timeout=_TIMEOUT, wait_for_workers=False)


def listening_store(host: str, world: int) -> tuple[Any, str]:
    """A TCP store that listens at one address of this machine, and where: host:port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    server.bind((host, 0))
    server.listen()
    port = int(server.getsockname()[1])
    store = _stores.TCPStore(
        host, port, world, is_master=True, timeout=_TIMEOUT, wait_for_workers=False, master_listen_fd=server.detach()
    )
    return store, f"{host}:{port}"


def _asked(meeting: Callable[[], str]) -> str:
    end = time.monotonic() + _MEETING_SECONDS
    while not (place := meeting()):
        if time.monotonic() > end:
            raise IncompleteError(
                "training processes did not meet: rank 0 said nothing; rerun the same command to resume"
            )
        time.sleep(0.1)
    return place
