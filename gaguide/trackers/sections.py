"""The DeepSpeed JSON's sections `mlflow` and `trackio`, which DeepSpeed itself never sees."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    enabled: bool = False
    """Whether the run is sent there."""


class MlflowSection(_Section):
    """`mlflow`: a run of an MLflow experiment."""

    tracking_uri: str | None = None
    """Address of the server or database; else MLFLOW_TRACKING_URI, else a database in the run's folder."""
    experiment: str = Field("gaguide", min_length=1)
    """Name of the experiment, made if it does not exist."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Further tags of the run."""


class TrackioSection(_Section):
    """`trackio`: a run of a trackio project."""

    project: str = Field("gaguide", min_length=1)
    """Name of the project, made if it does not exist."""
    group: str | None = None
    """Group of runs that the dashboard shows together."""
    space_id: str | None = None
    """Space of the hub that shows the project; else TRACKIO_SPACE_ID."""
    server_url: str | None = None
    """Address of a trackio server; else TRACKIO_SERVER_URL, else a database in the run's folder."""
    private: bool | None = None
    """Whether a new Space is private; None leaves that to the hub."""


SECTIONS: dict[str, type[MlflowSection] | type[TrackioSection]] = {
    "mlflow": MlflowSection,
    "trackio": TrackioSection,
}
"""Section → its model."""
