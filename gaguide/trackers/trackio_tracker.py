"""trackio behind the trackers' interface.

trackio sends in a thread of its own and buffers data on this machine that a server did not accept.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaguide.trackers.rows import FILES, Kind, Row
from gaguide.trackers.sections import TrackioSection
from gaguide.trackers.tracker import Status, TrackedRun


class TrackioTracker:
    """A `Tracker`. A run's id is its name, with which trackio resumes; it ends in six random letters."""

    def __init__(self, section: TrackioSection) -> None:
        self._section = section
        self._name = ""
        self._run: Any = None

    def open(self, run: TrackedRun, known: str | None) -> str:
        """See `Tracker.open`."""
        place = run.place.resolve() / "trackio"
        place.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TRACKIO_DIR", str(place))  # read when trackio is imported
        self._name = known or f"{run.name}-{secrets.token_hex(3)}"
        return self._name

    def describe(self, run: TrackedRun, earlier: str | None) -> None:
        """See `Tracker.describe`."""
        config = {**run.config, **run.tags}
        if earlier is not None:
            config["gaguide.continues"] = earlier
        self._start(config)

    def _start(self, config: Mapping[str, Any] | None) -> Any:
        if self._run is None:
            import trackio

            section = self._section
            self._run = trackio.init(
                section.project,
                name=self._name,
                group=section.group,
                space_id=section.space_id,
                server_url=section.server_url,
                private=section.private,
                config=None if config is None else dict(config),
                resume="allow",
                embed=False,
            )
        return self._run

    def last_steps(self) -> Mapping[Kind, int]:
        """See `Tracker.last_steps`. trackio thins long histories out, but keeps the last row of each kind."""
        found: dict[Kind, int] = {}
        for row in self._history():
            for kind in FILES:
                if any(name.startswith(f"{kind}/") for name in row):
                    found[kind] = max(found.get(kind, -1), int(row["step"]))
        return found

    def _history(self) -> list[dict[str, Any]]:
        import huggingface_hub
        from trackio.remote_client import RemoteClient
        from trackio.sqlite_storage import SQLiteStorage

        run = self._start(None)
        if not run.url:
            return SQLiteStorage.get_logs(run.project, run.name, run_id=run.id)
        space = self._section.space_id or os.environ.get("TRACKIO_SPACE_ID")
        client = RemoteClient(
            space or self._section.server_url or os.environ["TRACKIO_SERVER_URL"],
            hf_token=huggingface_hub.get_token() if space else None,
            write_token=None if space else os.environ.get("TRACKIO_WRITE_TOKEN"),
        )
        logs = client.predict(project=run.project, run=run.name, run_id=run.id, api_name="/get_logs")
        return logs if isinstance(logs, list) else []

    def log(self, rows: Sequence[Row]) -> None:
        """See `Tracker.log`."""
        for row in rows:
            self._start(None).log(dict(row.numbers), step=row.step)

    def attach(self, name: str, files: Sequence[Path]) -> None:
        """See `Tracker.attach`. Different content becomes a new version of the artifact RUN-NAME."""
        from trackio import Artifact

        artifact = Artifact(re.sub(r"[^\w.-]", "_", f"{self._name}-{name}", flags=re.ASCII), type=name)
        for file in files:
            artifact.add_file(str(file), name=file.name)
        self._start(None).log_artifact(artifact)

    def close(self, status: Status | None) -> None:
        """See `Tracker.close`. trackio has no status."""
        self._start(None).finish()
