"""MLflow behind the trackers' interface, through its client: no global state, no active run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gaguide.trackers.rows import FILES, Kind, Row
from gaguide.trackers.sections import MlflowSection
from gaguide.trackers.tracker import Status, TrackedRun

# Tried again by the caller, in the background; MLflow's own are seven with pauses of minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
logging.getLogger("alembic").setLevel(logging.WARNING)

# After its environment, which MLflow reads when it is imported.
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)

_STATUS = {"finished": "FINISHED", "diverged": "FAILED", "stopped": "KILLED", "failed": "FAILED"}
_MAX_METRICS, _MAX_PARAMS, _MAX_VALUE = 1000, 100, 6000
"""MLflow's limits: metrics and parameters of one request, and characters of a parameter."""


class MlflowTracker:
    """A `Tracker`."""

    def __init__(self, section: MlflowSection) -> None:
        self._section = section
        self._client: Any = None
        self._id = ""

    def open(self, run: TrackedRun, known: str | None) -> str:
        """See `Tracker.open`."""
        place = run.place.resolve()
        address = self._section.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        place.mkdir(exist_ok=True)
        self._client = MlflowClient(tracking_uri=address or f"sqlite:///{place / 'mlflow.db'}")
        if known is None or not self._is_there(known):
            files = None if address else str(place / "mlflow-artifacts")
            known = self._client.create_run(self._experiment(files), run_name=run.name).info.run_id
        self._id = str(known)
        return self._id

    def _is_there(self, known: str) -> bool:
        try:
            return bool(self._client.get_run(known).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _experiment(self, artifacts: str | None) -> str:
        """The id of the experiment; `artifacts` is where a new one keeps files (None: the server says)."""
        name = self._section.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)  # another run has just made it
        return str(found.experiment_id)

    def describe(self, run: TrackedRun, earlier: str | None) -> None:
        """See `Tracker.describe`. MLflow's parameters never change: those of the first start remain."""
        self._client.update_run(self._id, status="RUNNING")
        tags = {**self._section.tags, **run.tags}
        if earlier is not None:
            tags["gaguide.continues"] = earlier
        for name, value in tags.items():
            self._client.set_tag(self._id, name, value)
        known = self._client.get_run(self._id).data.params
        params = [Param(name, text[:_MAX_VALUE]) for name, text in _flat(run.config) if name not in known]
        for at in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._id, params=params[at : at + _MAX_PARAMS])

    def last_steps(self) -> Mapping[Kind, int]:
        """See `Tracker.last_steps`."""
        names = sorted(self._client.get_run(self._id).data.metrics)
        found: dict[Kind, int] = {}
        for kind in FILES:
            of_kind = [name for name in names if name.startswith(f"{kind}/")]
            if f"{kind}/lm_loss" in of_kind:
                of_kind = [f"{kind}/lm_loss"]  # every row has it
            for name in of_kind:
                last = max(each.step for each in self._client.get_metric_history(self._id, name))
                found[kind] = max(found.get(kind, -1), last)
        return found

    def log(self, rows: Sequence[Row]) -> None:
        """See `Tracker.log`."""
        now = int(time.time() * 1000)
        metrics: list[Metric] = []
        for row in rows:  # a request has whole rows, so that none is there in part if it fails
            if len(metrics) + len(row.numbers) > _MAX_METRICS:
                self._client.log_batch(self._id, metrics=metrics)
                metrics = []
            metrics += [Metric(name, value, now, row.step) for name, value in row.numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def attach(self, name: str, files: Sequence[Path]) -> None:
        """See `Tracker.attach`."""
        for file in files:
            self._client.log_artifact(self._id, str(file), name)

    def close(self, status: Status | None) -> None:
        """See `Tracker.close`."""
        if status is not None:
            self._client.set_terminated(self._id, _STATUS[status])


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of all values."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
