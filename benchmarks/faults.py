"""Faults at random on a real cluster of several nodes; after each, the bytes have to be those of an undisturbed run.

    python benchmarks/faults.py --rounds 100

A round shards, labels or trains tiny images under one fault, which strikes when a random number of parts (or steps) is
done and a worker is at work on another: a node or a worker is killed; the driver is killed, or stopped by SIGTERM, and
followed by one in another folder; two drivers work at once; an object store spoils a tenth of all requests; the disk
of the workspace, or that of TMPDIR, runs full. Stages and faults take turns. Workers pause before each file they put,
so that a fault finds them in the middle of a part, and keep a ledger of what they begin (`watched.py`). A round is good
if it ends with the same bytes, no worker that was lost cost more than the part it was at (a training: the steps since
its checkpoint), and nothing was made again without a reason. `--log FILE` keeps a line a round, and resumes from what
it holds, so that rounds can be run in several sittings.

Where mounting is not permitted, the disks are not filled.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import boto3  # noqa: E402
import watched  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

from pipeline.commands import run as stages  # noqa: E402
from schemas.toml_text import toml_text  # noqa: E402
from stages.storage.store import Store  # noqa: E402
from tests.support.nodes import Nodes, below, parent  # noqa: E402
from tests.support.proxy import WAYS, Proxy  # noqa: E402
from tests.support.stored import TIMING  # noqa: E402
from tests.support.world import CLASSES, TEACHER, run_file, silent, write_images  # noqa: E402

FAULTS = ("node", "worker", "driver", "stop", "two drivers", "store", "disk", "staging")
VERBS = {"shard": "shards/train", "label-teacher": "labels/teacher", "train": "runs/student"}
NEEDS = {"shard": (), "label-teacher": ("shards", "runs/teacher"), "train": ("shards", "labels")}
CELLS = [(verb, fault) for fault in FAULTS for verb in VERBS if (verb, fault) != ("train", "staging")]
STEPS, EVERY = 20, 4
"""Steps of a training, and of them from checkpoint to checkpoint."""
SETTINGS: tuple[dict[str, Any], ...] = (
    {"shards": {"samples_per_shard": 10}, "labels": {"views": 4}, "source": {"val": ""}},
    {"train": {"max_steps": STEPS, "checkpoint_every": EVERY, "log_every": 3}},
)
_SECONDS = 240.0
_OWN_MOUNTS = "DEIT_FAULTS_OWN_MOUNTS"
_ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_EC2_METADATA_DISABLED": "true",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


class World:
    """Images, an undisturbed workspace, a cluster and an object store."""

    def __init__(self, folder: Path, nodes: Nodes, scratch: Path) -> None:
        self.folder, self.nodes, self.scratch = folder, nodes, scratch
        write_images(folder / "images/train", dict.fromkeys(CLASSES, 60))
        self.calm = Store(str(folder / "calm"))
        stages.shard(self.run_file(self.calm.uri), silent)
        stages.train(run_file(self.calm.uri, folder / "images", TEACHER), silent)
        stages.label(self.run_file(self.calm.uri), silent)
        stages.train(self.run_file(self.calm.uri), silent)
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a line a request, more for a cut one
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        self.endpoint = "{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=f"http://{self.endpoint}", region_name="us-east-1")
        client.create_bucket(Bucket="faults")

    def run_file(self, workspace: str, **cluster: Any) -> Any:
        """The run file of a workspace."""
        cache = {"cache": {"folder": str(self.folder / "cache")}}
        return run_file(workspace, self.folder / "images", *SETTINGS, cache, {"cluster": cluster})

    def uri(self, name: str, at: str) -> str:
        """A folder of the object store, through the server or a proxy."""
        return f"s3://faults/{name}?scheme=http&endpoint_override={at}&region=us-east-1&request_timeout=1"


class Round:
    """One stage in a workspace of its own, under one fault; `play` says how it went."""

    def __init__(self, world: World, number: int, verb: str, fault: str) -> None:
        self.world, self.verb, self.fault, self.chance = world, verb, fault, random.Random(number)
        self.folder = world.folder / f"round-{number}"
        self.workspace = str(self.folder / "workspace")
        self.total = STEPS if verb == "train" else len(world.calm.child(VERBS[verb]).files("receipts"))
        self.goal = self.chance.randrange(1, self.total - 3)
        self.before: set[int] = set()
        self.spoilt: dict[str, int] = {}

    def play(self) -> dict[str, Any]:
        """Strike, and compare with the undisturbed run."""
        begin = time.monotonic()
        (self.folder / "workspace").mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            calm = self._set_up(stack)
            self._strike()
            made, truth = (kept(store.child(VERBS[self.verb])) for store in (calm, self.world.calm))
            other = sorted(name for name in {*made, *truth} if made.get(name) != truth.get(name))
            found = self._count()
        shutil.rmtree(self.folder)
        return {
            "verb": self.verb, "fault": self.fault, "goal": self.goal, "of": self.total, "same": not other,
            "other": other, **found, "spoilt": self.spoilt, "seconds": round(time.monotonic() - begin, 1),
        }  # fmt: skip

    def _set_up(self, stack: contextlib.ExitStack) -> Store:
        """Put what the stage needs into the workspace, which is handed back as one that nothing spoils."""
        calm = Store(self.workspace)
        if self.fault == "disk":
            stack.enter_context(mounted(Path(self.workspace), megabytes=32))
        if self.fault == "store":
            proxy = Proxy(self.world.endpoint, 0.1, WAYS)
            proxy.random = self.chance
            stack.callback(proxy.server_close)
            stack.callback(proxy.shutdown)
            self.workspace = self.world.uri(self.folder.name, proxy.at)
            self.spoilt, calm = proxy.spoilt, Store(self.world.uri(self.folder.name, self.world.endpoint))
        for path in (path for need in NEEDS[self.verb] for path, _ in self.world.calm.files_below(need)):
            calm.put(path, self.world.calm.read(path))
        workers = 1 if self.verb == "train" or self.fault == "two drivers" else 2
        run = self.world.run_file(self.workspace, cpus=workers, devices=workers)
        (self.folder / "deit.toml").write_text(toml_text(run))
        return calm

    def _strike(self) -> None:
        """Run the stage to its end, through the fault."""
        process = self._start("here")
        if self.fault == "store":
            self._end(process, "here")
        elif self.fault == "two drivers":
            second = self._start("elsewhere")
            self._end(process, "here")
            self._end(second, "elsewhere")
        else:
            victim = self._at_work(process)
            self.before = {one.pid for one in watched.attempts(self.folder)}
            self._hit(process, victim)

    def _hit(self, process: BaseProcess, victim: int) -> None:
        assert process.pid
        if self.fault == "node":
            while (raylet := parent(victim)) not in self.world.nodes.workers("raylet/raylet"):
                victim = self._at_work(process)  # that one has ended by itself; what is struck has to be a node
            for pid in (raylet, *below(raylet)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.world.nodes.kill(raylet)
            self.world.nodes.add()
            self._end(process, "here")
        elif self.fault == "worker":
            os.kill(victim, signal.SIGKILL)
            self._end(process, "here")
        elif self.fault in ("driver", "stop"):
            if self.fault == "driver":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGTERM)
            self._end(process, "here", code=3 if self.fault == "stop" else -signal.SIGKILL)
            self._end(self._start("elsewhere"), "elsewhere")
        else:
            whole = self.fault == "staging"  # where a part's room is free again when it is done
            disk, room = (self.world.scratch, 0) if whole else (Path(self.workspace), self.chance.randrange(12_000))
            with filled(disk, room):
                line = self._end(process, "here", code=1).splitlines()[-1]
                assert line.startswith("deit-pipeline: ") and "No space left on device" in line, line
            self._end(self._start("elsewhere"), "elsewhere")

    def _start(self, name: str) -> BaseProcess:
        more = ("-c", str(self.folder / "deit.toml"), "--json", "--address", self.world.nodes.address)
        return watched.start(self.folder / name, self.verb, *more)

    def _end(self, process: BaseProcess, name: str, code: int = 0) -> str:
        """Wait until a command ends, as it should; what it wrote to stderr."""
        process.join(_SECONDS)
        out, err = watched.said(self.folder / name)
        if process.exitcode != code or "Traceback" in err:
            raise RuntimeError(f"{self.verb}, {self.fault}: exit code {process.exitcode}, not {code}\n{out}\n{err}")
        return err

    def _at_work(self, process: BaseProcess) -> int:
        """Wait until the fault is due and a worker is at work; its id."""
        end = time.monotonic() + _SECONDS
        while process.exitcode is None and time.monotonic() < end:
            found = watched.attempts(self.folder)
            busy = [one.pid for one in found if not one.end]
            if busy and sum(bool(one.end) for one in self._counted(found)) >= self.goal:
                return self.chance.choice(busy)
            time.sleep(0.005)
        raise RuntimeError(f"{self.verb}, {self.fault}: was never at work\n{watched.said(self.folder / 'here')[1]}")

    def _counted(self, found: list[watched.Attempt]) -> list[watched.Attempt]:
        """Those of parts; of a training, of steps."""
        return [one for one in found if self.verb != "train" or one.part.startswith(watched.STEP)]

    def _count(self) -> dict[str, Any]:
        """Workers that the fault ended, those of them that it caught at work, and what was made again."""
        found = watched.attempts(self.folder)
        counted = self._counted(found)
        again = len(counted) - len({one.part for one in counted})
        caught = {one.pid for one in found if not one.end}
        failed = sum(one.end not in ("", watched.DONE) for one in found)
        lost = {"node": 1, "worker": 1}.get(self.fault, len(self.before))
        if self.verb == "train":
            processes = len({one.pid for one in found})
            most, reasons = EVERY * (processes - 1), EVERY * (processes - 1)
        else:
            most, reasons = lost + failed, len(caught) + failed
        if self.fault == "two drivers":
            most = reasons = self.total
        return {
            "lost": lost, "caught": len(caught), "failed": failed, "again": again,
            "bounded": again <= most, "needless": max(0, again - reasons),
        }  # fmt: skip


def kept(store: Store) -> dict[str, bytes]:
    """What a stage's folder is compared by: all files; of a training, the model, and the metrics without the clock."""
    if store.uri.partition("?")[0].endswith(VERBS["train"]):
        found = {name: store.read(name) for name in ("model.safetensors", "model_ema.safetensors", "manifest.json")}
        lines = [json.loads(line) for line in store.read("metrics.jsonl").splitlines()]
        told = [{key: value for key, value in line.items() if key not in TIMING} for line in lines]
        return found | {"metrics.jsonl": json.dumps(told, sort_keys=True).encode()}
    paths = [path for path, _ in store.files_below("") if not Path(path).name.startswith(".")]
    return {path: store.read(path) for path in paths}


@contextlib.contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[None]:
    """A disk of its own in a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "deit-faults", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def filled(disk: Path, room: int) -> Iterator[None]:
    """A disk with so many bytes of room."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    os.truncate(ballast, ballast.stat().st_size - room)
    try:
        yield
    finally:
        ballast.unlink()


def table(rounds: list[dict[str, Any]]) -> str:
    """The rounds, counted by stage and fault."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for one in rounds:
        groups[one["verb"], one["fault"]].append(one)
    lines = [
        "| stage | fault | rounds | same bytes | workers lost | at work | made again, mean / most | needless | s |",
        "|" + "---|" * 9,
    ]
    spoilt: Counter[str] = Counter()
    for (verb, fault), those in sorted(groups.items()):
        total = {key: sum(one[key] for one in those) for key in ("same", "lost", "caught", "again", "needless")}
        mean, most = total["again"] / len(those), max(one["again"] for one in those)
        seconds = sum(one["seconds"] for one in those) / len(those)
        counts = f"{len(those)} | {total['same']} | {total['lost']} | {total['caught']}"
        lines.append(f"| {verb} | {fault} | {counts} | {mean:.1f} / {most} | {total['needless']} | {seconds:.1f} |")
        for one in those:
            spoilt.update(one["spoilt"])
    seconds = sum(one["seconds"] for one in rounds) / max(1, len(rounds))
    same, bounded = sum(one["same"] for one in rounds), sum(one["bounded"] for one in rounds)
    lines += ["", f"{len(rounds)} rounds of {seconds:.1f} s: {same} with the same bytes, {bounded} within the bound"]
    return "\n".join([*lines, "spoilt requests: " + ", ".join(f"{way} {count}" for way, count in spoilt.items())])


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds in all, those of the log included")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after the round in which this time is over")
    parser.add_argument("--log", default="", help="a file with a line a round")
    parser.add_argument("--only", default="", help="only rounds of a stage or a fault")
    arguments = parser.parse_args()
    log = Path(arguments.log) if arguments.log else None
    rounds = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    mounts = _mounts()
    cells = [cell for cell in CELLS if arguments.only in ("", *cell) and (mounts or cell[1] not in ("disk", "staging"))]
    end = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory(prefix="deit-faults-") as folder, contextlib.ExitStack() as stack:
        (scratch := Path(folder, "scratch")).mkdir()
        if mounts:
            stack.enter_context(mounted(scratch, megabytes=32))
        os.environ.update(_ENVIRONMENT)
        nodes = stack.enter_context(Nodes(PYTHONPATH=_ENVIRONMENT["PYTHONPATH"], TMPDIR=str(scratch)))
        os.environ.update(nodes.environment)
        world = World(Path(folder), nodes, scratch)
        while len(rounds) < arguments.rounds and time.monotonic() < end:
            verb, fault = cells[len(rounds) % len(cells)]
            rounds.append(Round(world, len(rounds), verb, fault).play())
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(rounds[-1]) + "\n")
    print(table(rounds))
    sys.exit(not all(one["same"] and one["bounded"] for one in rounds))


def _mounts() -> bool:
    """Whether disks can be mounted; where they can, this program is run again in a room of its own for mounts."""
    if os.environ.get(_OWN_MOUNTS):
        return True
    room = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*room, "true"], stderr=subprocess.DEVNULL).returncode:
        return False
    os.environ[_OWN_MOUNTS] = "1"
    os.execvp(room[0], [*room, sys.executable, *sys.argv])


if __name__ == "__main__":
    main()
