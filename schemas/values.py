"""Types of the run file's values, each with the check that its annotation stands for.

A wrong value raises ValueError with what is allowed; the run file's reader adds the key.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PlainValidator

from schemas.names import checkpoint_name, folder_name
from schemas.paths import LOCAL_ONLY
from schemas.secrets import is_uri

FolderName = Annotated[str, AfterValidator(folder_name)]
NoneOrFolderName = Annotated[str, AfterValidator(lambda value: value and folder_name(value))]


def _names(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, tuple) and value and all(isinstance(one, str) for one in value)):
        return value
    raise ValueError("must be a string, or a list of strings for a mixture")


def _not_empty(value: Any) -> Any:
    if "" in (value if isinstance(value, tuple) else (value,)):
        raise ValueError("must not be empty")
    return value


def _sizes(value: Any) -> Any:
    sizes = value if isinstance(value, tuple) and value else (value,)
    if all(type(one) is int and 0 <= one <= 4096 for one in sizes):
        return value
    raise ValueError("must be a whole number of pixels from 0 to 4096, or a list of them for a mixture")


def _on_disk(value: Any) -> Any:
    if any(map(is_uri, value if isinstance(value, tuple) else (value,))):
        raise ValueError(LOCAL_ONLY)
    return value


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict | tuple | list):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            _plain(one, f"{key}.{name}".lstrip("."))
    elif not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{key}: must be a string, a finite number, true or false, or a list or table of these")
    return value


def _tables(value: Any) -> Any:
    if isinstance(value, dict) or (isinstance(value, tuple) and value and all(isinstance(one, dict) for one in value)):
        return value
    raise ValueError("must be a table, or a list of tables for a mixture")


def _checkpoints(value: Any) -> Any:
    for one in value if isinstance(value, tuple) else (value,):
        checkpoint_name(one)
    return value


AUTO = "auto"
"""A setting that the command replaces by what suits the device; no plan, manifest or identity ever holds it."""
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""The trackers that a training may write to, by their libraries' names."""
Names = Annotated[str | tuple[str, ...], PlainValidator(_names)]
NonEmptyNames = Annotated[Names, AfterValidator(_not_empty)]
Tables = Annotated[dict[str, Any] | tuple[dict[str, Any], ...], PlainValidator(_tables), AfterValidator(_plain)]
Arguments = Annotated[dict[str, Any], AfterValidator(_plain)]
LocalPath = Annotated[str, AfterValidator(_on_disk)]
Checkpoint = Annotated[LocalPath, AfterValidator(checkpoint_name)]
Checkpoints = Annotated[Names, AfterValidator(_on_disk), AfterValidator(_checkpoints)]
Sizes = Annotated[int | tuple[int, ...], PlainValidator(_sizes)]


def _workers(value: Any) -> Any:
    if value == AUTO or (type(value) is int and 0 <= value <= 256):
        return value
    raise ValueError('must be "auto" or a whole number of processes from 0 to 256')


def _switch(value: Any) -> Any:
    if value == AUTO or isinstance(value, bool):
        return value
    raise ValueError('must be "auto", true or false')


def _cadence(value: Any) -> Any:
    if value == AUTO or (type(value) is int and 0 <= value <= 100_000):
        return value
    raise ValueError('must be "auto" or a whole number of epochs; 0 = never')


def _trackers(value: Any) -> Any:
    if isinstance(value, tuple) and all(one in TRACKERS for one in value) and len(set(value)) == len(value):
        return value
    raise ValueError(f"must be a list of {', '.join(TRACKERS)}, each at most once")


Cadence = Annotated[int | str, PlainValidator(_cadence)]
Workers = Annotated[int | str, PlainValidator(_workers)]
Switch = Annotated[bool | str, PlainValidator(_switch)]
Trackers = Annotated[tuple[str, ...], BeforeValidator(_trackers)]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
