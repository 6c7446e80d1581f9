"""Ray for the time of a command: an embedded one that nobody else can use, or an existing cluster.

Embedded: a token from the environment of its processes guards it, there is no dashboard, and its folder is deleted at
the end. Attached: the user's settings stand, a token that is missing or not the cluster's is an error before Ray would
try with it for long, and the package is shipped to nodes that do not have it.
"""

import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.execution.code_shipping import PACKAGES, Node, lacking_nodes, look_at_nodes
from pipeline.execution.ray_compat import (
    LOOPBACK,
    QUIET,
    ask_gcs,
    asks_for_token,
    embedded_node,
    ended_daemon,
    lacks_token,
    read_token_again,
)
from pipeline.execution.shutdown import GracefulShutdown, interrupt_main, keep_signal_handlers
from schemas.config import ClusterConfig
from schemas.errors import IncompleteError, UserError
from stages.storage.locks import scratch_folder

INLINE = "inline"
LOCAL = "local"
_KNOCK_SECONDS = 10.0
_FOLDER = ".deit-ray-"
_LONGEST_FOLDER = 40
"""Characters of the session's folder: Ray puts sockets below it, whose paths have 107 at most."""
_TOKEN_WANTED = (
    "this Ray asks for a token that the command does not have; set RAY_AUTH_MODE=token, and put the cluster's token "
    "into RAY_AUTH_TOKEN or ~/.ray/auth_token"
)
_NO_HOME = "/nonexistent"
"""The home of a user who has none, as Debian calls it; nothing is written there."""
_LOOK_SECONDS = 1.0
"""Between two looks whether the daemons of an embedded Ray live."""


@dataclass(frozen=True)
class Resources:
    """How many workers (0 = as many as fit), and what each needs of the cluster."""

    count: int
    cpus: int
    gpus: int = 0


@contextmanager
def ray_session(cluster: ClusterConfig, stop: GracefulShutdown | None = None) -> Iterator[Any]:
    """Ray for the time of a command: an embedded one for "local", else the cluster at the address.

    Args:
        cluster: says which.
        stop: listens to the command's signals, if anything does.

    Raises:
        UserError: if there is no cluster at the address, or it cannot run this package.
        IncompleteError: if the embedded one loses a daemon.
    """
    local = cluster.address == LOCAL
    if not local:
        _check_port(cluster.address)
    with environment(session_environment(local)):
        import ray

        if ray.is_initialized():
            yield ray
            return
        read_token_again()  # whoever has loaded Ray before, as a notebook does, has made it read one
        with (
            scratch_folder(_FOLDER, _root()) if local else nullcontext() as folder,
            redirect_stdout(sys.stderr),  # Ray tells of lost nodes on stdout, where --json has its object
        ):
            try:
                with keep_signal_handlers():
                    _start_local(ray, folder) if folder else _attach(ray, cluster.address)
                with _while_it_lives(ray, stop) if local else nullcontext():
                    yield ray
            finally:
                ray.shutdown()


def attached(cluster: ClusterConfig) -> AbstractContextManager[Any]:
    """An existing cluster, joined before anything is stored, so that a refused address leaves no plan behind."""
    return nullcontext() if cluster.address in (INLINE, LOCAL) else ray_session(cluster)


def session_environment(local: bool) -> dict[str, str | None]:
    """The environment of Ray's processes; what the user has set stands, but for an embedded one's guards."""
    usual = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    variables: dict[str, str | None] = {name: os.environ.get(name, value) for name, value in usual.items()}
    if os.path.expanduser("~") == "~":  # a container's user without a passwd entry; Ray Train asks for a home
        variables["HOME"] = _NO_HOME
    if local:
        # Without a token Ray runs anybody's code; this one lives in the environment of its processes only.
        variables |= LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token(), "RAY_AUTH_TOKEN_PATH": None}
    return variables


@contextmanager
def environment(changes: dict[str, str | None]) -> Iterator[None]:
    """Environment variables of this process for a time; None = not set.

    Each is put back, and so are Ray's own, which it sets besides; no other is touched.
    """
    before = {name: os.environ.get(name) for name in changes}
    rays = _rays()
    _set(changes)
    try:
        yield
    finally:
        _set(dict.fromkeys(_rays()) | rays | before)


def _rays() -> dict[str, str | None]:
    """Ray's own variables, and Python's debugger, which Ray puts in its place for all that this process starts."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_") or name == "PYTHONBREAKPOINT"}


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _while_it_lives(ray: Any, stop: GracefulShutdown | None) -> Iterator[None]:
    """Interrupt what runs within once a daemon of the embedded Ray has ended.

    Ray itself would end this process a minute after its GCS, and wait for ever for another raylet.

    Raises:
        IncompleteError: in place of whatever that interrupts.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if ended_daemon(ray):
                stop.abort() if stop else interrupt_main()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        own = isinstance(error, UserError) and not isinstance(error, IncompleteError)
        if own or not (daemon := ended_daemon(ray)):
            raise
        raise IncompleteError(
            f"the embedded Ray lost its {daemon} process, as when memory runs out; rerun the same command to resume"
        ) from None
    finally:
        over.set()
        thread.join()


def check_fits(ray: Any, resources: Resources, who: str = "a worker") -> None:
    """Compare the needs of one seat with what the cluster has, since Ray would wait for ever.

    Raises:
        UserError: if no worker could ever start.
    """
    has = ray.cluster_resources()
    for resource, needed in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        if has.get(resource, 0) < needed:
            raise UserError(
                f"{who} needs {needed} {resource}, the cluster has {has.get(resource, 0):g}; "
                "lower labels.workers, train.workers or cluster.devices, or add nodes"
            )


def _start_local(ray: Any, folder: Path) -> None:
    inner = folder / "r"  # Ray lets everybody write into the one that it is given; into the one above, nobody
    inner.mkdir()
    try:
        with embedded_node():
            ray.init(
                address=LOCAL, include_dashboard=False, object_store_memory=150 << 20, _temp_dir=str(inner), **QUIET
            )
    except Exception as error:  # Ray raises bare ones as well, as where too few processes are allowed
        raise UserError(
            f"cluster.address = local: Ray does not start ({_one_line(error)}); see `deit-pipeline doctor`; "
            "--address inline does without"
        ) from None


def _attach(ray: Any, address: str) -> None:
    """Join a cluster; a second time with the package in the luggage, if a node lacks it."""
    if address.startswith("ray://"):
        _warn(f"{address}: Ray's client loses all work when it is cut off; `ray job submit` on the cluster does not")
    _check_gcs(ray, address)
    _connect(ray, address, ship=False)
    nodes = look_at_nodes(ray)
    _compare_tokens(address, nodes)
    if lacking := lacking_nodes(nodes):
        ray.shutdown()
        _connect(ray, address, ship=True)
        if still := lacking_nodes(look_at_nodes(ray)):
            raise UserError(
                f"cluster.address = {address}: node {still[0]} cannot import the package that was shipped to it; "
                f"install deit-pipeline there (it lacked on {len(lacking)} nodes)"
            )


def _check_gcs(ray: Any, address: str) -> None:
    """See whether it is Ray that listens at host:port, and whether it takes this process's token.

    Ray itself would try both for minutes, and then say only that it cannot connect.
    """
    address = _host_and_port(address)
    if not address:
        return
    if lacks_token():
        raise UserError(f"cluster.address = {address}: {_TOKEN_WANTED}")
    try:
        ask_gcs(ray, address)
    except ray.exceptions.AuthenticationError:
        raise UserError(f"cluster.address = {address}: {_TOKEN_WANTED}") from None
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        raise UserError(f"cluster.address = {address}: no Ray there ({_one_line(error)})") from None


def _connect(ray: Any, address: str, *, ship: bool) -> None:
    runtime: dict[str, Any] = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}  # as the command line sets it here
    if ship:
        runtime["py_modules"] = [str(package) for package in PACKAGES]
    try:
        ray.init(address=address, runtime_env=runtime, **QUIET)
    except ray.exceptions.AuthenticationError:
        raise UserError(f"cluster.address = {address}: {_TOKEN_WANTED}") from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cluster.address = {address}: no Ray, or of another token ({_one_line(error)})") from None


def _compare_tokens(address: str, nodes: list[Node]) -> None:
    """Warn of a cluster that asks for no token; one whose workers would refuse this process's is an error."""
    careless = [node.name for node in nodes if not node.asks]
    if careless and asks_for_token() and "://" not in address:
        raise UserError(
            f"cluster.address = {address}: node {careless[0]} asks for no token, and its workers refuse a command that "
            "has one; set RAY_AUTH_MODE=token where `ray start` is typed, or RAY_AUTH_MODE=disabled for this command"
        )
    if careless:
        _warn(f"{address}: this Ray asks for no token, so whoever reaches it can run code there; see docs/cluster.md")


def _check_port(address: str) -> None:
    """See whether anybody listens at host:port, before Ray is loaded."""
    host, _, port = _host_and_port(address).rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"cluster.address = {address}: no Ray there ({error})") from None


def _host_and_port(address: str) -> str:
    """An address that names a host and its port, RAY_ADDRESS for "auto" as in a Ray job; "" where Ray has to look."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    return address if host and port.isdigit() and "://" not in address else ""


@cache
def _token() -> str:
    """One token for the life of this process, since Ray keeps the first it reads."""
    return secrets.token_hex(32)


def _root() -> Path:
    """Where an embedded Ray's sockets and logs go."""
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) <= _LONGEST_FOLDER - len(_FOLDER) - 10 else Path("/tmp")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
