"""MLflow: a server, or a database in the workspace; it is asked which steps it holds, so none is doubled."""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from schemas.config import RunFile
from schemas.errors import UserError
from stages.storage.store import Store
from stages.trackers.about import About
from stages.trackers.tracker import Line

_TAG = "deit_pipeline.id"
_PARAMS, _METRICS, _CHARACTERS = 100, 1000, 6000
"""The most that MLflow takes in one request, and of one parameter."""
DATABASE = "mlflow.db"


class Run:
    """The run at MLflow, found by a tag; see `stages.trackers.tracker.Tracker`."""

    def __init__(self, about: About, config: RunFile, store: Store) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=_address(config))
        self._id = self._run(about, self._experiment(config.tracking.project))
        self._client.update_run(self._id, status="RUNNING")
        self._tell(about)
        self._held: dict[str, set[int]] = {}

    def send(self, lines: Sequence[Line], sent: int) -> None:
        """Send the numbers that the run has not."""
        now = int(time.time() * 1000)
        missing = []
        for line in lines:
            for name, value in line.items():
                held = self._steps(name)
                if name != "step" and line["step"] not in held:
                    missing.append(Metric(name, float(value), now, line["step"]))
        for start in range(0, len(missing), _METRICS):
            batch = missing[start : start + _METRICS]
            self._client.log_batch(self._id, metrics=batch)
            for one in batch:
                self._held[one.key].add(one.step)

    def close(self, *, done: bool) -> None:
        """End the run; a training that was stopped counts as killed until it is resumed."""
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another command has made it meanwhile
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _run(self, about: About, experiment: str) -> str:
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{about.id}'", max_results=1)
        run: Any = (
            found[0] if found else self._client.create_run(experiment, run_name=about.name, tags={_TAG: about.id})
        )
        return str(run.info.run_id)

    def _tell(self, about: About) -> None:
        """The configuration, whose first values stay, as MLflow changes no parameter; and the identity as tags."""
        told = self._client.get_run(self._id).data.params
        params = [Param(key, str(value)[:_CHARACTERS]) for key, value in about.config.items() if key not in told]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self._id, params=params[start : start + _PARAMS])
        for key, value in about.identity.items():
            self._client.set_tag(self._id, f"deit_pipeline.{key}", value)

    def _steps(self, name: str) -> set[int]:
        """The steps at which the run has a metric; it is asked once."""
        if name not in self._held:
            self._held[name] = {one.step for one in self._client.get_metric_history(self._id, name)}
        return self._held[name]


def _address(config: RunFile) -> str:
    """The server or database."""
    given = config.tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    folder = Store(config.workspace).local_path("")
    if folder is None:
        raise UserError("tracking.mlflow_uri: the workspace is no local folder; name a server or a database")
    return f"sqlite:///{folder.resolve() / DATABASE}"
