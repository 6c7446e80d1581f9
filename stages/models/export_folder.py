"""The folder of an export: complete or untouched, and never of two models.

All files are written and flushed beside their places first, so a full disk or a killed process leaves the folder as it
was. A new folder then comes by one rename. In a folder that is there, what goes is gone and the weights are in their
place before `config.json`, without which nobody loads them, comes last.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from schemas.errors import UserError
from stages.models.weights import MODEL_FILE
from stages.storage.locks import scratch_folder

CARD_FILE = "README.md"
CONFIG_FILE = "config.json"
ONNX_FILE = "model.onnx"
TORCH_FILE = "model.pt2"
_EXPORTED = (CARD_FILE, CONFIG_FILE, ONNX_FILE, TORCH_FILE, MODEL_FILE)
"""What exports of all formats are made of."""
_OF_A_STAGE = ("plan.json", "manifest.json", "receipts")
_STAGING = ".deit-export-"
_SHOWN = 3


def refuse_foreign(out: str, names: Iterable[str], force: bool) -> None:
    """See that a folder may be written, before anything is computed.

    Args:
        out: the folder, which need not be there.
        names: of the files to write; where the folder holds no others, `write_export` compares them.
        force: replace the files of an export that is there.

    Raises:
        UserError: if it is no local folder, holds a stage of a workspace, or, without `force`, something else.
    """
    if "://" in out:
        raise UserError(f"--out {out}: is a URI; name a local folder, and copy it from there")
    try:
        found = _found(Path(out))
    except OSError as error:
        raise _cannot(out, error) from None
    if stage := [name for name in found if name in _OF_A_STAGE]:
        raise UserError(f"--out {out}: holds {stage[0]}, as a stage of a workspace does; name another folder")
    if not force and (others := [name for name in found if name not in set(names)]):
        raise _holds(out, others)


def write_export(out: str, files: Mapping[str, bytes], force: bool) -> None:
    """Write an export into its folder; one of the same bytes that is there is left as it is.

    Raises:
        UserError: as `refuse_foreign`; or the folder holds another export, or cannot be written.
    """
    refuse_foreign(out, files, force)
    folder = Path(out)
    try:
        there = _found(folder)
        if there and not force:
            if not all(name in there and (folder / name).read_bytes() == data for name, data in files.items()):
                raise _holds(out, there)
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(_STAGING, folder if folder.is_dir() else folder.parent) as scratch:
            staged = scratch / "export"
            staged.mkdir()
            for name, data in files.items():
                _write(staged / name, data)
            if folder.is_dir():
                _replace(folder, staged, files)
            else:
                staged.rename(folder)
    except OSError as error:
        raise _cannot(out, error) from None


def _found(folder: Path) -> list[str]:
    """Sorted names of what a folder holds, but for what a killed export left; none where it is not there."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith(_STAGING))
    except FileNotFoundError:
        return []


def _replace(folder: Path, staged: Path, files: Mapping[str, bytes]) -> None:
    """Put staged files in the place of an export's; other files stay."""
    for name in (CONFIG_FILE, *_EXPORTED):
        (folder / name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: name == CONFIG_FILE):
        (staged / name).rename(folder / name)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _holds(out: str, names: list[str]) -> UserError:
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return UserError(
        f"--out {out}: holds {shown}; name another folder, or --force to replace the files of an export there"
    )


def _cannot(out: str, error: OSError) -> UserError:
    return UserError(f"--out {out}: cannot be written ({error.strerror or error}); name another folder, or make room")
