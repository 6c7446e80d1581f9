"""Paths on this machine, where a URI would be taken for a relative path with a secret in it."""

from pathlib import Path

from schemas.errors import UserError
from schemas.secrets import is_uri

LOCAL_ONLY = "is a URI; name a path on a disk of this machine"


def local_path(value: str, where: str) -> Path:
    """The path that an option names.

    Args:
        value: of the option.
        where: the option, for the error.

    Raises:
        UserError: if it is a URI.
    """
    if is_uri(value):
        raise UserError(f"{where} {value}: {LOCAL_ONLY}")
    return Path(value)
