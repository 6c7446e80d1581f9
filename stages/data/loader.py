"""Load: a dataset's items, built ahead in worker processes, in order, and moved to the device that uses them.

torch's DataLoader has the queue: two items a worker are under way and no more. Three things are done otherwise.
Workers come from a clean server, not from a fork of the trainer. Items cross over in anonymous memory: torch's way is
/dev/shm, of which a container has 64 MB, and one batch of 1,024 views has 154. And a lost worker is one line, after
which a rerun of the same command resumes.
"""

import io
import mmap
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.reduction import DupFd
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from schemas.errors import IncompleteError, UserError
from stages.data.servers import end_with_parent, start_servers
from stages.models.torch_compat import lost_data_process

_AHEAD = 2
"""Items of a worker that are finished or being built."""

_ALIGNMENT = 64


class Loader:
    """Data processes that build a dataset's items ahead, order after order; they are started with the first.

    Args:
        dataset: read item by item in an order; they are tensors, alone or in tuples.
        workers: processes; 0 = build in this one.
        pin: copy tensors to page-locked memory, for asynchronous copies to a GPU.
        preload: modules that the workers need, imported once by the server from which they are forked; timm among
            them would cost every worker 130 MB.
    """

    def __init__(
        self, dataset: Dataset[Any], *, workers: int, pin: bool = False, preload: tuple[str, ...] = ()
    ) -> None:
        self._order = _Order()
        self._loader: Iterable[Any] = DataLoader(
            _Handed(dataset),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=_begin,
            multiprocessing_context=_workshop(preload) if workers else None,
            prefetch_factor=_AHEAD if workers else None,
            persistent_workers=bool(workers),
        )

    def items(self, order: Iterable[Any]) -> Iterator[Any]:
        """The items of an order, in it; the processes begin to build at once. The order before has to be at its end.

        Raises:
            UserError: as the dataset raised it.
            IncompleteError: if a worker process was lost.
        """
        self._order.order = order
        return _raised(_unless_lost(iter(self._loader)))


def load(
    dataset: Dataset[Any], *, workers: int, order: Iterable[Any], pin: bool = False, preload: tuple[str, ...] = ()
) -> Iterator[Any]:
    """The items of one order; see `Loader`."""
    return Loader(dataset, workers=workers, pin=pin, preload=preload).items(order)


class _Order(Sampler[Any]):
    """What a loader is to build next."""

    order: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.order)


def _raised(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, UserError):
            raise item
        yield item


def on_device(items: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Items with their tensors on a device; on a GPU an item is copied while the step before it is computed.

    The copy is issued on a stream of its own as soon as that step is queued, and the next step waits for it. Tensors
    that are not in page-locked memory are copied at once.
    """
    if device.type != "cuda":
        yield from (moved(item, device) for item in items)
        return
    copies = torch.cuda.Stream(device)
    for item in items:
        with torch.cuda.stream(copies):
            copied = moved(item, device)
        steps = torch.cuda.current_stream(device)
        steps.wait_stream(copies)
        for tensor in _tensors(copied):
            tensor.record_stream(steps)  # its memory is not given to the next copy while a step reads it
        yield copied


def one_late(items: Iterable[tuple[Any, dict[str, Tensor]]]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """Items with their named tensors in host memory, each yielded when the next one has been requested.

    A copy from a GPU is started at once and waited for one item later, while the GPU computes that one.
    """
    late: tuple[Any, dict[str, Tensor], torch.cuda.Event | None] | None = None
    for what, tensors in items:
        begun = _to_host(what, tensors)
        if late is not None:
            yield _arrived(*late)
        late = begun
    if late is not None:
        yield _arrived(*late)


def _to_host(what: Any, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor], "torch.cuda.Event | None"]:
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return what, tensors, None
    host = {name: torch.empty_like(tensor, device="cpu", pin_memory=True) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        host[name].copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return what, host, event


def _arrived(what: Any, host: dict[str, Tensor], event: "torch.cuda.Event | None") -> tuple[Any, dict[str, Tensor]]:
    if event is not None:
        event.synchronize()
    return what, host


def moved(item: Any, device: torch.device) -> Any:
    """An item with its tensors, alone or in tuples, on a device."""
    return _mapped(item, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(item: Any) -> Any:
    """An item with its tensors, alone or in tuples, in page-locked memory."""
    return _mapped(item, Tensor.pin_memory)


def _mapped(item: Any, do: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(item, Tensor):
        return do(item)
    if isinstance(item, tuple):
        parts = [_mapped(part, do) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
    return item


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple):
        for part in item:
            yield from _tensors(part)


def _unless_lost(items: Iterator[Any]) -> Iterator[Any]:
    """Items, until they end or a worker is lost: DataLoader reports it, or its socket breaks first."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not lost_data_process(error):
                raise
            raise IncompleteError(
                f"a data process was lost ({type(error).__name__}: {str(error).strip()}), as when memory runs out; "
                "rerun the same command to resume, with fewer workers in the run file if it happens again"
            ) from None
        yield item


@cache
def _workshop(preload: tuple[str, ...]) -> Any:
    """Where worker processes come from: a server that has imported what they may need and run nothing.

    A fork of this process would inherit OpenCV's, torch's and object-store clients' locks without the threads that
    hold them, and wait for ever.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    start_servers()
    return context


class _Handed(Dataset[Any]):
    """Hands a UserError on as a value: a loader's own way adds its worker's traceback to the line."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, number: Any) -> Any:
        try:
            return _sent(self.dataset[number])
        except UserError as error:
            return error


def _sent(item: Any) -> Any:
    """An item as it leaves a worker; as it is where there is none."""
    return _Parcel.of(item) if get_worker_info() else item


@dataclass(frozen=True)
class _Parcel:
    """An item between two processes, which arrives as the item: its tensors in memory without a name.

    Attributes:
        head: the pickled item without its tensors' bytes.
        sizes: their lengths.
        memory: descriptor of a file in memory that holds them, on its way too.
    """

    head: bytes
    sizes: list[int]
    memory: Any

    @classmethod
    def of(cls, item: Any) -> "_Parcel":
        """Pack an item."""
        head = io.BytesIO()
        buffers: list[pickle.PickleBuffer] = []
        _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(item)
        contents = [buffer.raw() for buffer in buffers]
        sizes = [len(content) for content in contents]
        with open(os.memfd_create("deit-pipeline"), "wb") as file:
            for content, start in zip(contents, _starts(sizes), strict=False):
                file.seek(start)
                file.write(content)
            file.truncate(_starts(sizes)[-1])
            return cls(head.getvalue(), sizes, DupFd(file.fileno()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.head, self.sizes, self.memory)


def _open(head: bytes, sizes: list[int], memory: Any) -> Any:
    """The item of a parcel; its tensors are in the sender's pages, which are freed with the last of them."""
    descriptor = memory.detach()
    starts = _starts(sizes)
    try:
        pages = memoryview(mmap.mmap(descriptor, starts[-1]))
    finally:
        os.close(descriptor)
    contents = [pages[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    return pickle.loads(head, buffers=contents)


def _starts(sizes: list[int]) -> list[int]:
    """Aligned places for contents of these lengths one after the other, and the end."""
    starts = [0]
    for size in sizes:
        starts.append((starts[-1] + size) // _ALIGNMENT * _ALIGNMENT + _ALIGNMENT)
    return starts


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, whose bytes stay outside."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _begin(_: int) -> None:
    """Open a worker process: one thread, since its neighbours have the other cores; Ctrl-C is the command's to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all, and a part or step may be under way
    end_with_parent()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
