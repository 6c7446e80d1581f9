"""Files of a run that others read: its run file and its metrics. No torch is loaded here."""

import tomllib

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.run_file import parse_run
from stages.storage.store import Store

METRICS_FILE = "metrics.jsonl"


def stored_run(config: RunFile, name: str) -> RunFile:
    """The run file that was stored with a run, in today's workspace and with today's evaluation and cluster.

    Raises:
        UserError: if there is no such run.
    """
    runs = Store(config.workspace)
    if not runs.exists(f"runs/{name}/run.toml"):
        there = ", ".join(runs.folders("runs")) or "none"
        raise UserError(f"{runs.display_path(f'runs/{name}')}: no such run; there are: {there}")
    text = runs.read(f"runs/{name}/run.toml").decode()
    stored = parse_run(tomllib.loads(text), runs.display_path(f"runs/{name}/run.toml"))
    return stored.model_copy(
        update={"workspace": config.workspace, "evaluate": config.evaluate, "cluster": config.cluster}
    )
