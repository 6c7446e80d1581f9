"""A real Ray cluster of several raylets on this machine, in a process of its own that is told what to do.

The nodes work elsewhere, know nothing of this package, and ask for a token; a lost one is noticed within seconds. Run
as a program it is that process: it reads `add` and `kill PID` from stdin and answers each with a line of JSON.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """The cluster: a head without CPUs and `count` nodes with `cpus` each, in an environment with `more` variables.

    Attributes:
        address: where drivers join.
        jobs: where jobs are submitted, where the cluster takes any.
        environment: with which they may.
    """

    def __init__(
        self, count: int = 2, cpus: int = 1, token: str | None = None, takes_jobs: bool = False, **more: str
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="deit-", dir="/tmp")
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or secrets.token_hex(32)}
        self.environment = os.environ | secret | {"RAY_USAGE_STATS_ENABLED": "0"}
        alone = self.environment | {"RAY_TMPDIR": self._folder.name, "PYTHONPATH": ""} | more
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(cpus), str(_free_port() if takes_jobs else "")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone, cwd=self._folder.name,
        )  # fmt: skip
        self.address, self.jobs = self._answer()
        for _ in range(count):
            self.add()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)
        self._folder.cleanup()

    def add(self) -> None:
        """Start a node."""
        self.tell("add")

    def kill(self, raylet: int = 0) -> None:
        """End the node of that raylet with SIGKILL, or the one that was started first; its workers notice and end."""
        self.tell(f"kill {raylet}")

    def workers(self, title: str = "Worker.run") -> list[int]:
        """Ids of this cluster's processes that do something now, by default make a part."""
        return sorted(pid for pid in below(self._process.pid) if title in read_process(pid, "cmdline"))

    def tell(self, order: str) -> Any:
        """Give an order; what came of it."""
        assert self._process.stdin
        print(order, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("> "):
                return json.loads(line[2:])
        raise RuntimeError("the cluster ended")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def parent(pid: int) -> int:
    """Id of a process's parent; 0 if it is gone."""
    return int((read_process(pid, "stat").rpartition(")")[2].split() or ["", 0])[1])


def below(pid: int) -> set[int]:
    """Ids of the processes that a process has started, and that those have, and so on."""
    parents = {one: parent(one) for one in map(int, filter(str.isdigit, os.listdir("/proc")))}
    found = {pid}
    while more := {one for one, above in parents.items() if above in found} - found:
        found |= more
    return found - {pid}


def read_process(pid: int, file: str) -> str:
    try:
        return Path("/proc", str(pid), file).read_text(errors="replace")
    except OSError:
        return ""


def _serve(cpus: int, dashboard: str) -> None:
    from ray._private.utils import write_ray_address
    from ray.cluster_utils import Cluster

    def say(value: object) -> None:
        print(">", json.dumps(value), flush=True)

    Path(os.environ["RAY_TMPDIR"], "ray").mkdir()
    head = {"num_cpus": 0, "include_dashboard": bool(dashboard), "_system_config": HEALTH}
    if dashboard:  # and its agent's own port, since another Ray of this machine may have the usual one
        head |= {"dashboard_port": int(dashboard), "dashboard_agent_listen_port": _free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    write_ray_address(cluster.address)  # as `ray start` does, else a job is told of any cluster on this machine
    say([cluster.address, f"http://127.0.0.1:{dashboard}" if dashboard else ""])
    nodes = []
    for order in sys.stdin:
        if order.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=cpus, wait=True))
        else:
            raylet = int(order.split()[1])
            nodes.sort(key=lambda node: node.all_processes["raylet"][0].process.pid != raylet)
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        say(len(nodes))
    cluster.shutdown()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
