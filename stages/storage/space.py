"""Free space where a workspace is, or will be."""

import shutil
from pathlib import Path

from schemas.secrets import is_uri


def nearest_folder(path: str) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = Path(path).expanduser().absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def free_bytes(workspace: str) -> int | None:
    """Free bytes on the disk of a workspace, which need not exist yet; None for a URI, whose space is not known."""
    return None if is_uri(workspace) else shutil.disk_usage(nearest_folder(workspace)).free
