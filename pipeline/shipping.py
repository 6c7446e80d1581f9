"""The package on a cluster's nodes: there in the same source, to be shipped, or there in another version.

Shipped are the package's folders, by Ray's `py_modules`; what they import (torch, timm, …) has to be installed on the
nodes. Rejected: shipping always, which hides that the image of a cluster holds another version.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.errors import PipelineError, last_line

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(ROOT / name for name in ("pipeline", "stages", "schemas"))
_SECONDS = 120.0


def lacking_nodes(ray: Any) -> list[str]:
    """Names of the nodes that do not have this package's source.

    Raises:
        PipelineError: if a node has another version installed, or does not answer.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
    look = ray.remote(num_cpus=0, max_retries=0)(_looker())
    asked = {
        name: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote()
        for node, name in names.items()
    }
    mine, source, lacking = version(), fingerprint(), []
    for name, reference in asked.items():
        try:
            theirs, theirs_source = ray.get(reference, timeout=_SECONDS)
        except ray.exceptions.RayError as error:
            cause = last_line(error)
            raise PipelineError(f"node {name} of the cluster cannot start a worker ({cause})") from None
        if mine and theirs and theirs != mine:
            raise PipelineError(
                f"node {name} of the cluster has deit-pipeline {theirs}, this is {mine}; install the same version "
                "there, or none: then it is shipped"
            )
        if theirs_source != source:
            lacking.append(name)
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
