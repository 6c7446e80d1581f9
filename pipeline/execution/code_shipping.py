"""The package on a cluster's nodes: there in the same source, to be shipped, or there in another version.

Shipped are the package's folders, by Ray's `py_modules`; what they import (torch, timm, …) has to be installed on the
nodes. Rejected: shipping always, which hides that the image of a cluster holds another version.
"""

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import UserError, last_line

ROOT = Path(__file__).parents[2]
PACKAGES = tuple(ROOT / name for name in ("pipeline", "stages", "schemas"))
_SECONDS = 120.0


@dataclass(frozen=True)
class Node:
    """The description of a cluster's node.

    Attributes:
        name: of the node.
        version: of this package as it is installed there, "" where it is not.
        source: hex sha256 over this package's source there, "" where there is none.
        asks: whether it needs a token.
    """

    name: str
    version: str
    source: str
    asks: bool


def look_at_nodes(ray: Any) -> list[Node]:
    """All living nodes, each described by a task on it.

    Raises:
        UserError: if a node does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
    look = ray.remote(num_cpus=0, max_retries=0)(_asker())
    asked = [
        (name, look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote())
        for node, name in names.items()
    ]
    found = []
    for name, reference in asked:
        try:
            found.append(Node(name, *ray.get(reference, timeout=_SECONDS)))
        except ray.exceptions.RayError as error:
            cause = last_line(error)
            raise UserError(f"node {name} of the cluster cannot start a worker ({cause})") from None
    return found


def lacking_nodes(nodes: Iterable[Node]) -> list[str]:
    """Names of the nodes that do not have this package's source.

    Raises:
        UserError: if a node has another version installed.
    """
    mine, source, lacking = version(), fingerprint(), []
    for node in nodes:
        if mine and node.version and node.version != mine:
            raise UserError(
                f"node {node.name} of the cluster has deit-pipeline {node.version}, this is {mine}; install the same "
                "version there, or none: then it is shipped"
            )
        if node.source != source:
            lacking.append(node.name)
    return lacking


def version() -> str:
    """The version of this package, "" where it runs without being installed."""
    try:
        return importlib.metadata.version("deit-pipeline")
    except importlib.metadata.PackageNotFoundError:
        return ""


def fingerprint() -> str:
    """Hex sha256 over this package's source files."""
    return str(_looker()()[1])


def _looker() -> Callable[[], tuple[str, str]]:
    """A function that needs nothing of this package, so that it can be sent where the package is not."""

    def look() -> tuple[str, str]:
        import hashlib
        import importlib.metadata
        import importlib.util
        from pathlib import Path

        try:
            installed = importlib.metadata.version("deit-pipeline")
        except importlib.metadata.PackageNotFoundError:
            installed = ""
        digest = hashlib.sha256()
        for package in ("pipeline", "stages", "schemas"):
            found = importlib.util.find_spec(package)
            if found is None or not found.origin:
                return installed, ""
            root = Path(found.origin).parent
            for file in sorted(root.rglob("*.py")):
                digest.update(f"{package}/{file.relative_to(root)}".encode() + b"\0" + file.read_bytes() + b"\0")
        return installed, digest.hexdigest()

    return look


def _asker() -> Callable[[], tuple[str, str, bool]]:
    """The same for a node, and whether Ray needs a token there."""
    look = _looker()

    def ask() -> tuple[str, str, bool]:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled  # as in ray_compat

        return (*look(), bool(is_token_auth_enabled()))

    return ask
