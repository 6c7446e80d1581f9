"""What orchestration costs: Ray against this process on the same parts, a resume, a plan, and a step's look-up.

python benchmarks/orchestration.py ray --seconds 5 --parts 12
python benchmarks/orchestration.py resume --receipts 100000
python benchmarks/orchestration.py step --shards 1000000
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.execution.ray_session import INLINE, LOCAL, Resources, ray_session  # noqa: E402
from pipeline.execution.run_parts import make_parts  # noqa: E402
from pipeline.execution.stage_dir import open_stage  # noqa: E402
from pipeline.execution.worker import Job, left_to_do  # noqa: E402
from schemas.config import ClusterConfig  # noqa: E402
from schemas.manifests import ShardManifest  # noqa: E402
from schemas.parts import Parts  # noqa: E402
from schemas.receipts import PartOutput, Receipt, StoredFile, fingerprint  # noqa: E402
from schemas.tables import PARTS  # noqa: E402
from stages.replay.order import Stream  # noqa: E402
from stages.shard.plan import ShardSpec, shard_name  # noqa: E402
from stages.storage.commit import valid_receipts  # noqa: E402
from stages.storage.manifest import put_manifest  # noqa: E402
from stages.storage.store import Store  # noqa: E402

Maker = Callable[[ShardSpec, Path], PartOutput]


def working(seconds: float) -> Maker:
    """Makes parts of about so many seconds of one core, as shards are: hashing and some files."""
    import hashlib

    block, begin_ = bytes(1 << 20), time.perf_counter()
    for _ in range(50):
        hashlib.sha256(block).digest()
    blocks = int(seconds * 50 / (time.perf_counter() - begin_))

    return partial(_work, blocks)


def _work(blocks: int, spec: ShardSpec, staging: Path) -> PartOutput:
    import hashlib

    block = bytes(1 << 20)
    for _ in range(blocks):
        hashlib.sha256(block).digest()
    return PartOutput(files={f"{spec.name}.bin": block}, rows=1, facts={})


def compare(seconds: float, parts: int) -> None:
    """The same parts inline and by one worker of an embedded Ray; its start is counted apart."""
    specs = [ShardSpec(number, pa.table({})) for number in range(parts)]
    work = working(seconds)
    cluster = ClusterConfig(address=INLINE)

    def timed(address: str, specs: list[ShardSpec]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            job = Job(open_stage(store, {}, {}, ""), partial(_maker, work))
            at = cluster.model_copy(update={"address": address})
            started = time.perf_counter()
            resources = Resources(count=1, cpus=1)
            make_parts(job, specs, wanted=len(specs), cluster=at, resources=resources, done=lambda receipt: None)
            return time.perf_counter() - started

    started = time.perf_counter()
    with ray_session(cluster.model_copy(update={"address": LOCAL})):
        up = time.perf_counter() - started
        first = timed(LOCAL, specs[:1]) - seconds
        under_ray = [timed(LOCAL, specs) for _ in range(2)]
    inline = [timed(INLINE, specs) for _ in range(2)]
    print(f"start of Ray {up:.1f} s, of a worker about {max(first, 0):.1f} s")
    beyond = min(under_ray) - max(first, 0)
    print(f"{parts} parts: inline {min(inline):.2f} s, by one Ray worker {min(under_ray):.2f} s with its start")
    print(f"beyond start-up: {beyond / min(inline) - 1:+.1%}")


def _maker(work: Maker) -> Maker:
    return work


def resume(count: int) -> None:
    """Find the first missing part among so many receipts on this disk."""
    with tempfile.TemporaryDirectory() as folder:
        for sub in ("", "receipts"):
            Path(folder, sub).mkdir(exist_ok=True)
        specs = [ShardSpec(number, pa.table({})) for number in range(count + 1)]
        for spec in specs[:-1]:
            file = StoredFile(path=f"{spec.name}.parquet", bytes=1, sha256="0" * 64)
            facts = {"agreement": {"own": 1, "partner": 2, "neither": 3}, "margins": [1] * 40, "near_ties": 0}
            receipt = Receipt(part=spec.name, files=(file,), rows=30_000, made_by="0" * 64, facts=facts)
            Path(folder, file.path).write_bytes(b"x")
            Path(folder, "receipts", f"{spec.name}.json").write_bytes(receipt.to_json())
        started = time.perf_counter()
        (missing,) = left_to_do(specs, valid_receipts(Store(folder)))
        print(f"{count:,} receipts: first missing part {missing.name} after {time.perf_counter() - started:.1f} s")


def plan(shards: int) -> None:
    """Plan the labels of so many shards of 1,000 images, half of them done, and find the first step over them.

    From the shards' manifest on, as the commands do.
    """
    from pipeline.commands.label import label_specs  # loads torch, as the command does
    from stages.data.split import Split

    with tempfile.TemporaryDirectory() as folder:
        writer = multiprocessing.get_context("fork").Process(
            target=_many_shards, args=(f"{folder}/shards/train", shards)
        )
        writer.start()
        writer.join()
        size = sum(length for _, length in Store(folder).files_below(""))
        started = time.perf_counter()
        split = Split.open(folder, "train")
        opened = time.perf_counter() - started
        specs = label_specs({}, len(split.rows), 10, 10)
        receipt = Receipt(part="", files=(), rows=0, made_by="", facts={})
        left = left_to_do(specs, dict.fromkeys((spec.name for spec in specs[::2]), receipt))
        stream = Stream(split.rows, repeats=3, window=16, recipe_seed=0, seed=0)
        stream.step(0, 1024)
        took = time.perf_counter() - started
    print(f"{len(split):,} images in {shards:,} shards: their manifest of {size / 1e6:.0f} MB read in {opened:.1f} s, "
          f"{len(specs):,} parts planned, {len(left):,} left, first step found after {took:.1f} s")  # fmt: skip


def _many_shards(folder: str, shards: int) -> None:
    """Put the manifest of so many shards; in a process of its own, whose memory does not count."""
    made_from = {"classes": ["a"]}
    about: dict[str, Any] = {
        "stage": "shard", "made_from": made_from, "made_by": fingerprint(made_from), "versions": {}, "classes": ("a",),
        "found": 1000 * shards, "samples": 1000 * shards, "skipped": (), "other_files": 0,
    }  # fmt: skip
    tables = [_parts(range(first, min(first + 10_000, shards))) for first in range(0, shards, 10_000)]
    put_manifest(Store(folder), ShardManifest, Parts.of_table(pa.concat_tables(tables)), **about)


def _parts(shards: range) -> pa.Table:
    def files(shard: int) -> list[dict[str, Any]]:
        name, digest = shard_name(shard), f"{shard:064x}"
        return [{"path": f"{name}.{kind}", "bytes": 110_000_000, "sha256": digest} for kind in ("parquet", "tar")]

    columns = {"part": list(map(shard_name, shards)), "rows": [1000] * len(shards), "files": list(map(files, shards))}
    return pa.table(columns, schema=PARTS)


def step(shards: int) -> None:
    """Look up steps of a stream over shards of 1,000 images: the first of a pass, and others in it."""
    stream = Stream([1000] * shards, repeats=3, window=16, recipe_seed=0, seed=0)
    steps = stream.units_per_pass // 512
    first: list[float] = []
    others: list[float] = []
    for number in range(40):
        pass_, nth = divmod(number, 4)
        started = time.perf_counter()
        stream.step(pass_ * steps + (nth * 1_000_003 + 1) % steps, 1024)
        (others if nth else first).append(1000 * (time.perf_counter() - started))
    print(f"{shards:,} shards: first look-up of a pass {np.median(first):.1f} ms, slowest {max(first):.1f}; others "
          f"{np.median(others):.1f} ms, slowest {max(others):.1f}")  # fmt: skip


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    under = verbs.add_parser("ray")
    under.add_argument("--seconds", type=float, default=5.0)
    under.add_argument("--parts", type=int, default=12)
    verbs.add_parser("resume").add_argument("--receipts", type=int, default=100_000)
    verbs.add_parser("plan").add_argument("--shards", type=int, default=1_000_000)
    verbs.add_parser("step").add_argument("--shards", type=int, default=1_000_000)
    chosen: Any = parser.parse_args()
    if chosen.verb == "ray":
        compare(chosen.seconds, chosen.parts)
    elif chosen.verb == "resume":
        resume(chosen.receipts)
    elif chosen.verb == "plan":
        plan(chosen.shards)
    else:
        step(chosen.shards)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
