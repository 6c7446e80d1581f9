"""All that is private or a matter of wording in Ray, in one place; `tests/execution/test_ray_compat.py` fails with it.

What Ray offers no public way to: listening on loopback only, daemons in process groups of their own, whether these
live, and whether a token is there before Ray looks for one.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

QUIET = {"logging_level": "ERROR", "log_to_driver": False}  # what a worker has to say comes back as a value
_NO_PORT = "65536"
"""None that can be listened on: Ray's metrics servers ask for no token, log that they cannot start, and do not."""
LOOPBACK = {
    # Made for systems without clusters: all of Ray's servers then listen on 127.0.0.1, and only there.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": _NO_PORT,
    "DASHBOARD_METRIC_PORT": _NO_PORT,
}
"""Environment of an embedded Ray's processes."""


@contextmanager
def embedded_node() -> Iterator[None]:
    """For the time in which an embedded Ray is started: what its environment does not say to this process.

    Ray reads `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER` when it is imported, which may have been for an existing cluster. Each
    daemon leads a process group: a SIGTERM to the command's group, as a scheduler sends it, then ends no daemon under
    the step that the command is about to finish.
    """
    from ray._private import ray_constants, services

    popen, clusters = services.ConsolePopen, ray_constants.ENABLE_RAY_CLUSTER

    def own_group(*arguments: Any, **options: Any) -> Any:
        return popen(*arguments, process_group=0, **options)

    services.ConsolePopen, ray_constants.ENABLE_RAY_CLUSTER = own_group, False
    try:
        yield
    finally:
        services.ConsolePopen, ray_constants.ENABLE_RAY_CLUSTER = popen, clusters


def ended_daemon(ray: Any) -> str:
    """The name of a daemon of this process's embedded Ray that has ended; "" where all live, or it has none."""
    node = ray._private.worker._global_node
    daemons = node.all_processes if node is not None else {}
    needed = (name for name in ("gcs_server", "raylet") if name in daemons)
    return next((name for name in needed if any(one.process.poll() is not None for one in daemons[name])), "")


def embedded_folder(ray: Any) -> str:
    """The folder of this process's embedded Ray, which ends with it; "" where it has none."""
    node = ray._private.worker._global_node
    return str(node.get_temp_dir_path()) if node is not None and node.all_processes else ""


def ask_gcs(ray: Any, address: str) -> None:
    """Ask the GCS at host:port for its cluster; raises as Ray's client does."""
    ray._raylet.GcsClient(address=address)


def read_token_again() -> None:
    """Let a Ray that was loaded before, under another environment, take mode and token from that of now."""
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def lacks_token() -> bool:
    """Whether this process is to use a token and has none, upon which Ray's client would end it."""
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray.exceptions import AuthenticationError

    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)
    except AuthenticationError:
        return True
    return False


def asks_for_token() -> bool:
    """Whether this process's Ray needs a token."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def died_alone(ray: Any, error: Exception) -> bool:
    """Whether a process died on a node that lives, as one does that the kernel kills for its memory."""
    if isinstance(error, ray.exceptions.OutOfMemoryError | ray.exceptions.WorkerCrashedError):
        return True
    return isinstance(error, ray.exceptions.ActorDiedError) and NODE_DIED not in str(error)


NODE_DIED = "node has died"
"""In the text of an ActorDiedError whose node is gone as well."""


def failed_to_start(ray: Any, error: Exception) -> bool:
    """Whether an actor's own constructor or method raised, rather than its process having been lost."""
    return isinstance(error, ray.exceptions.RayTaskError) or bool(getattr(error, "actor_init_failed", False))


def own_group_config() -> Any:
    """A configuration of TorchTrainer that joins no process group: the training does it itself."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class OwnGroup(Backend):  # type: ignore[misc]
        share_cuda_visible_devices = True  # as in Ray's own for torch: NCCL wants to see its neighbours' GPUs

    class OwnGroupConfig(TorchConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> Any:
            return OwnGroup

    return OwnGroupConfig()
