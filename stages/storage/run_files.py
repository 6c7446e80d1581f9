"""Files of a run that others read: its run file and its metrics. No torch is loaded here."""

import tomllib
from typing import Any

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.names import require_folder_name
from schemas.run_file import parse_run
from stages.storage.store import Store

RUN_FILE = "run.toml"
METRICS_FILE = "metrics.jsonl"
MODEL_FILE, EMA_FILE = "model.safetensors", "model_ema.safetensors"
"""What a run leaves: its model, and the moving average of that."""
WEIGHTS_FILES = {"model": MODEL_FILE, "ema": EMA_FILE}
"""By `evaluate.weights`."""


def run_store(workspace: str, name: str, what: str = "") -> Store:
    """The folder of a run, whether it is there or not; `what` says where the name comes from, for the error.

    Raises:
        UserError: if the name is no folder name, and so might lead out of the workspace's runs.
    """
    return Store(workspace).at(f"runs/{require_folder_name(what or f'run {name}', name)}")


def weights_sha256(manifest: dict[str, Any] | None, file: str) -> str | None:
    """Of a run's weights file, as its manifest has it; None if the run is not whole."""
    files = manifest["parts"][0]["files"] if manifest else []
    return next((str(one["sha256"]) for one in files if one["path"] == file), None)


def run_as_stored(workspace: str, name: str, what: str = "") -> RunFile:
    """The run file that was stored with a run, as it was; `what` as in `run_store`.

    Raises:
        UserError: if there is no such run, or its run file is damaged.
    """
    store = run_store(workspace, name, what)
    if not store.exists(RUN_FILE):
        there = ", ".join(Store(workspace).folders("runs")) or "none"
        raise UserError(f"{store}: no such run; there are: {there}")
    try:
        values = tomllib.loads(store.read(RUN_FILE).decode())
    except ValueError as error:
        raise UserError(f"{store.name('run.toml')}: not a TOML file ({error}); restore it") from None
    return parse_run(values, store.name(RUN_FILE))


def stored_run(run: RunFile, name: str) -> RunFile:
    """The run file that was stored with a run, in today's workspace and with today's evaluation and cluster.

    Raises:
        UserError: if there is no such run, or its run file is damaged.
    """
    stored = run_as_stored(run.workspace, name)
    return stored.model_copy(update={"workspace": run.workspace, "evaluate": run.evaluate, "cluster": run.cluster})
