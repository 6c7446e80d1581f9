"""Processes of a training meet without a listener that anybody may use."""

import os

import torch
import torch.distributed as dist

from pipeline.execution.process_group import listening_store, process_group
from stages.train.checkpoint import Checkpoint
from stages.train.hand_out import pack, unpack
from tests.support.listeners import listeners

CPU = torch.device("cpu")


def member(rank: int, root, announced, told, heard) -> None:
    """One of two processes, in a process of its own."""
    with process_group(
        rank=rank, world=2, device=CPU, alone=True, root=root, host="", announce=announced.put, meeting=told.get
    ):
        number = torch.tensor([41 + rank])
        dist.broadcast(number, src=0)
        heard.put((int(number), listeners({os.getpid()})))
        dist.barrier()


def test_processes_of_one_host_meet_in_a_file_and_listen_on_loopback_only(tmp_path):
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    place, heard = context.Queue(), context.Queue()
    processes = [context.Process(target=member, args=(rank, tmp_path, place, place, heard)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [heard.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert [number for number, _ in found] == [41, 41]
    assert {host for _, listening in found for host, _, _ in listening} == {"127.0.0.1"}
    assert list(tmp_path.iterdir()) == []


def test_a_single_process_joins_nothing():
    with process_group(
        rank=0, world=1, device=CPU, alone=True, root=None, host="", announce=lambda place: None, meeting=lambda: ""
    ):
        assert not dist.is_initialized()


def test_a_store_for_several_hosts_listens_at_one_address():
    before = listeners({os.getpid()})
    store, place = listening_store("127.0.0.1", 2)
    new = [one for one in listeners({os.getpid()}) if one not in before]
    assert [f"{host}:{port}" for host, port, _ in new] == [place]
    other = dist.TCPStore("127.0.0.1", int(place.rpartition(":")[2]), 2, is_master=False, wait_for_workers=False)
    other.set("a", "b")
    assert store.get("a") == b"b"


def test_a_checkpoint_is_handed_out_whole_and_as_tensors_only():
    for lines in (None, b"", b'{"step": 2}\n'):
        one = Checkpoint(7, {"w": torch.eye(3)[:, 1]}, {}, {"a/b": torch.tensor(2.0)}, lines)
        data = pack(one)
        back = unpack(data)
        assert (back.step, back.ema, back.lines) == (7, {}, lines)
        assert torch.equal(back.model["w"], one.model["w"]) and torch.equal(back.state["a/b"], one.state["a/b"])
        assert int.from_bytes(data[:8], "little") < len(data) and data[8:9] == b"{"  # a safetensors header
