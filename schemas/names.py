"""Names that become folders: of a run, of a label set. One rule for all, wherever a name comes from."""

import re

from schemas.errors import UserError

RUN_PREFIX = "run:"
"""Begins a checkpoint that is a run of the workspace: `run:NAME`."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def folder_name(value: str) -> str:
    """The name itself, if it names one folder and nothing outside of the folder that it is in.

    Raises:
        ValueError: if it does not.
    """
    if not _NAME.fullmatch(value):
        raise ValueError(
            "must be a folder name: letters, digits, '.', '_' and '-', at most 100, a letter or digit first"
        )
    return value


def checkpoint_name(value: str) -> str:
    """A checkpoint as a run file gives it: a path, or `run:NAME`; raises ValueError where NAME is no folder name."""
    if value.startswith(RUN_PREFIX):
        try:
            folder_name(value.removeprefix(RUN_PREFIX))
        except ValueError as error:
            raise ValueError(f"NAME of {RUN_PREFIX}NAME {error}") from None
    return value


def require_folder_name(what: str, value: str) -> str:
    """`folder_name` for a name that no run file has checked, such as an argument of a command.

    Raises:
        UserError: beginning with `what`, the origin of the name.
    """
    try:
        return folder_name(value)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None
