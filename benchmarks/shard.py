"""Sharding: our command on all cores against webdataset's ShardWriter in one process; memory at ImageNet's size.

    python benchmarks/shard.py writers ../shared/data/imagenet_sample_train.tar
    python benchmarks/shard.py scale many.tar --classes 1000

`writers` unpacks the photographs into a folder first, so that both read the same files, below TMPDIR: a tmpfs there
leaves out the disk, for which our writer waits and ShardWriter does not. ShardWriter is shown as its users use it, its
bytes read and written unchecked; with a wait until the disk has them (sync); and with Pillow decoding each image before
it is written, since we write no image that does not decode. `scale` writes a tar of class tars with 1,300 tiny images
each, lists it and plans its shards, packs them all with the command, and prints times and the command's peak memory.
"""

import argparse
import io
import os
import resource
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.commands import shard as stages
from pipeline.execution.ray_session import ray_session
from schemas.config import RunFile, ShardsConfig
from schemas.run_file import parse_run
from stages.shard.plan import plan_shards
from stages.sources.discover import list_source
from stages.sources.reader import Reader

_ROUNDS = 3
_PER_SHARD = 250
_SLOW = "ShardWriter, images decoded"


def writers(archive: str, copies: int) -> None:
    """Time each way of writing the same files, in turns, and print the best of three rounds; of the slowest, one."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        count = _unpack(archive, root / "images", copies)
        shown = {
            "ShardWriter, plain copy": lambda: _shard_writer(root, check=False),
            "ShardWriter, copy and sync": lambda: _shard_writer(root, check=False, sync=True),
            _SLOW: lambda: _shard_writer(root, check=True),
            "deit-pipeline, all cores": lambda: _ours(root, "local"),
            "deit-pipeline, one process": lambda: _ours(root, "inline"),
        }
        run = _run_file(root, "local")
        with ray_session(run.cluster):  # its start takes seconds, of however many images
            best = dict.fromkeys(shown, float("inf"))
            for nth in range(_ROUNDS):
                for name, write in shown.items():
                    if nth and name == _SLOW:
                        continue  # one round of it takes as long as all the others
                    shutil.rmtree(root / "out", ignore_errors=True)
                    os.sync()  # what was written before is nobody's
                    best[name] = min(best[name], _seconds(write))
        peer = best["ShardWriter, plain copy"]
        for name, seconds in best.items():
            print(f"{name:30} {count / seconds:8.0f} images/s  {peer / seconds:5.2f} times a plain copy")


def scale(archive: str, classes: int) -> None:
    """List, plan and pack 1,300 images of each class."""
    path = Path(archive)
    if not path.exists():
        _write_many(path, classes=classes, images=1300)
    before, start = _peak(), time.perf_counter()
    listing = list_source(archive, "train", None)
    listed = time.perf_counter() - start
    specs = plan_shards(listing, ShardsConfig(), shuffle=True)
    key = listing.fingerprint()[:8]
    seconds = time.perf_counter() - start
    print(f"{len(listing.images)} images, {len(specs)} shards, content {key}")
    print(f"listed in {listed:.0f} s, planned in {seconds - listed:.0f} s")
    print(f"peak memory {_peak() / 1e9:.2f} GB, of which {before / 1e9:.2f} GB are the imports")
    del listing, specs
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        run = parse_run({"workspace": out, "source": {"train": archive}}, "benchmark")
        seconds = _seconds(lambda: stages.shard(run, print))
    print(f"packed in {seconds:.0f} s, listing and planning again included; peak memory {_peak() / 1e9:.2f} GB")


def _unpack(archive: str, root: Path, copies: int) -> int:
    listing = list_source(archive, "train", None)
    for found in Reader(listing.source).read(listing.images):
        for copy in range(copies):
            path = root / Path(found.name).parent / f"{copy}-{Path(found.name).name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(found.data)
    return len(listing.images) * copies


def _shard_writer(root: Path, check: bool, sync: bool = False) -> None:
    from webdataset import ShardWriter  # which loads torch: `scale` measures memory without

    (root / "out").mkdir()
    classes = {folder: number for number, folder in enumerate(sorted((root / "images").iterdir()))}
    with ShardWriter(str(root / "out/%06d.tar"), maxcount=_PER_SHARD, verbose=0) as writer:
        for number, path in enumerate(sorted((root / "images").rglob("*.*"))):
            data = path.read_bytes()
            if check:
                with Image.open(io.BytesIO(data)) as image:
                    image.load()
            writer.write(
                {"__key__": f"{number:07d}", "jpg": data, "cls": classes[path.parent], "json": {"name": path.name}}
            )
    if sync:
        os.sync()


def _run_file(root: Path, address: str) -> RunFile:
    source = {"train": str(root / "images")}
    values = {"workspace": str(root / "out"), "source": source, "shards": {"samples_per_shard": _PER_SHARD}}
    return parse_run(values | {"cluster": {"address": address}}, "benchmark")


def _ours(root: Path, address: str) -> None:
    stages.shard(_run_file(root, address), lambda _: None)


def _seconds(do: Callable[[], Any]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def _write_many(path: Path, *, classes: int, images: int) -> None:
    tiny = io.BytesIO()
    Image.new("L", (8, 8)).save(tiny, "JPEG")
    data = tiny.getvalue() + bytes(-len(tiny.getvalue()) % tarfile.BLOCKSIZE)
    with path.open("wb") as file:
        for number in range(classes):
            inner = io.BytesIO()
            for image in range(images):
                inner.write(_header(f"n{number:08d}_{image}.JPEG", len(tiny.getvalue())) + data)
            inner.write(bytes(2 * tarfile.BLOCKSIZE))
            file.write(_header(f"n{number:08d}.tar", inner.tell()) + inner.getvalue())
        file.write(bytes(2 * tarfile.BLOCKSIZE))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["writers", "scale"])
    parser.add_argument("archive")
    parser.add_argument("--copies", type=int, default=100, help="how often each photograph is written")
    parser.add_argument("--classes", type=int, default=1000, help="of `scale`; each has 1,300 images")
    arguments = parser.parse_args()
    if arguments.what == "writers":
        writers(arguments.archive, arguments.copies)
    else:
        scale(arguments.archive, arguments.classes)
