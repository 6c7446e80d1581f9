"""Faults at random on a real cluster of several nodes; after each, the bytes have to be those of an undisturbed run.

    python benchmarks/faults.py --rounds 100

A round shards or labels tiny images under one fault, chosen at random and striking when a random number of parts is
done: a node or a worker killed, the driver killed and followed by one in another folder, two drivers at once, a driver
stopped by SIGTERM, or an object store that spoils a tenth of all requests. `--log FILE` keeps a line a round, and
goes on from what it holds, so that rounds can be run in several sittings.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import boto3  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402
from nodes import Nodes  # noqa: E402
from test_cluster import drive, workers  # noqa: E402
from test_s3 import Proxy  # noqa: E402
from world import CLASSES, TEACHER, run_file, silent, write_images  # noqa: E402

from pipeline import run as stages  # noqa: E402
from schemas.toml_text import toml_text  # noqa: E402
from stages.store import Store  # noqa: E402

FAULTS = ("node", "worker", "driver", "stop", "two drivers", "store")
VERBS = {"shard": "shards/train", "label-teacher": "labels/teacher"}
_SECONDS = 240
_KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}


class World:
    """Images, an undisturbed workspace, a cluster and an object store; `round` runs one round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_images(folder / "images/train", dict.fromkeys(CLASSES, 60))
        write_images(folder / "images/val", dict.fromkeys(CLASSES, 3), seed=1)
        self.settings: tuple[dict[str, Any], ...] = (
            {"shards": {"samples_per_shard": 4}, "labels": {"views": 4, "passes_per_part": 2}, "source": {"val": ""}},
            {"cluster": {"cpus": 2, "devices": 2, "attempts": 10}},
        )
        calm = run_file(folder / "calm", folder / "images", *self.settings)
        stages.shard(calm, silent)
        stages.train(run_file(folder / "calm", folder / "images", *self.settings, TEACHER), silent)
        stages.label(calm, silent)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        self.endpoint = f"{host}:{port}"
        client = boto3.client("s3", endpoint_url=f"http://{self.endpoint}", region_name="us-east-1")
        client.create_bucket(Bucket="faults")

    def _uri(self, name: str, at: str) -> str:
        return f"s3://faults/{name}?scheme=http&endpoint_override={at}&region=us-east-1"

    def _truth(self, verb: str) -> dict[str, bytes]:
        return kept(Store(str(self.folder / "calm")).at(VERBS[verb]))

    def round(self, nodes: Nodes, number: int, verb: str, fault: str, chance: random.Random) -> dict[str, Any]:
        """Run one verb in a workspace of its own under a fault, and compare."""
        name, proxy = f"round-{number}", Proxy(self.endpoint, 0.1, ("500", "cut before", "cut within"))
        workspace = self._uri(name, proxy.at) if fault == "store" else str(self.folder / name)
        run = run_file(workspace, self.folder / "images", *self.settings)
        (self.folder / f"{name}.toml").write_text(toml_text(run))
        calm = Store(self._uri(name, self.endpoint) if fault == "store" else workspace)
        if verb == "label-teacher":
            for part in ("shards", "runs"):
                for path, _ in list(Store(str(self.folder / "calm")).files_below(part)):
                    calm.put(path, (self.folder / "calm" / path).read_bytes())
        stage, total = calm.at(VERBS[verb]), len(Store(str(self.folder / "calm")).at(VERBS[verb]).files("receipts"))
        goal = chance.randrange(1, total - 1)
        begin = time.monotonic()
        again = self._strike(nodes, verb, fault, f"{name}.toml", lambda: len(stage.files("receipts")), goal)
        found = kept(stage)
        result = {
            "verb": verb, "fault": fault, "goal": goal, "parts": total, "again": again,
            "same": found == self._truth(verb), "seconds": time.monotonic() - begin,
            "spoilt": sum(proxy.spoilt.values()),
        }  # fmt: skip
        proxy.shutdown()
        proxy.server_close()
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return result

    def _strike(self, nodes: Nodes, verb: str, fault: str, file: str, done: Callable[[], int], goal: int) -> int:
        """Run the verb under a fault; how many parts were made again."""

        def start(folder: Path) -> subprocess.Popen[str]:
            found: subprocess.Popen[str] = drive(nodes, folder, verb, "-c", str(self.folder / file))
            return found

        process = start(self.folder)
        second = start(self.folder) if fault == "two drivers" else None
        _wait(process, lambda: done() >= goal)
        if fault == "node":
            nodes.kill()
            nodes.add()
        elif fault == "worker":
            for worker in workers()[:1]:
                os.kill(worker, signal.SIGKILL)
        elif fault in ("driver", "stop") and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL) if fault == "driver" else os.kill(process.pid, signal.SIGTERM)
            process.communicate()
            before = done()
            (self.folder / "elsewhere").mkdir(exist_ok=True)
            process = start(self.folder / "elsewhere")
            out, _ = _end(process)
            return _new(out) - (_total(out) - before)
        _, err = _end(process)
        if second:
            _end(second)
        return err.count("is tried again")


def kept(store: Store) -> dict[str, bytes]:
    """What counts of a stage's folder."""
    found = {path: store.read(path) for path, _ in store.files_below("")}
    return {name: data for name, data in found.items() if not Path(name).name.startswith(".")}


def _wait(process: subprocess.Popen[str], seen: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS
    while not seen() and process.poll() is None:
        if time.monotonic() > end:
            raise RuntimeError("the command hangs")
        time.sleep(0.01)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=_SECONDS)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {err}")
    return out, err


def _new(out: str) -> int:
    found = json.loads(out)
    return int(found["new_parts"] if "new_parts" in found else found["splits"]["train"]["new_parts"])


def _total(out: str) -> int:
    found = json.loads(out)
    return int(found["parts"] if "parts" in found else found["splits"]["train"]["parts"])


def table(rounds: list[dict[str, Any]]) -> str:
    """The rounds, counted by stage and fault."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for one in rounds:
        groups[one["verb"], one["fault"]].append(one)
    lines = [
        "| stage | fault | rounds | same bytes | parts made again, mean / most | seconds, mean |",
        "|" + "---|" * 6,
    ]
    for (verb, fault), those in sorted(groups.items()):
        again = [one["again"] for one in those]
        same, seconds = sum(one["same"] for one in those), sum(one["seconds"] for one in those) / len(those)
        mean = sum(again) / len(again)
        lines.append(f"| {verb} | {fault} | {len(those)} | {same} | {mean:.1f} / {max(again)} | {seconds:.1f} |")
    return "\n".join([*lines, f"{len(rounds)} rounds, {sum(one['same'] for one in rounds)} with the same bytes"])


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds in all, those of the log included")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after the round in which this time is over")
    parser.add_argument("--log", default="", help="a file with a line a round")
    arguments = parser.parse_args()
    log = Path(arguments.log) if arguments.log else None
    rounds = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    end = time.monotonic() + arguments.seconds
    os.environ.update(_KEYS)  # of the object store, for nodes and drivers
    with tempfile.TemporaryDirectory(prefix="deit-faults-") as folder, Nodes() as nodes:
        world = World(Path(folder))
        while len(rounds) < arguments.rounds and time.monotonic() < end:
            chance = random.Random(len(rounds))
            verb, fault = chance.choices(list(VERBS), [4, 1])[0], FAULTS[len(rounds) % len(FAULTS)]
            rounds.append(world.round(nodes, len(rounds), verb, fault, chance))
            print(rounds[-1], file=sys.stderr, flush=True)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(rounds[-1]) + "\n")
    print(table(rounds))


if __name__ == "__main__":
    main()
