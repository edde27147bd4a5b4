"""The interface of trackers, implemented by MLflow and trackio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from gaguide.trackers.rows import Kind, Row

Status = Literal["finished", "diverged", "stopped", "failed"]
"""How a start of a run ended; after `stopped` it can be resumed."""


@dataclass(frozen=True)
class TrackedRun:
    """The data of a run that trackers receive. No text in it shows credentials."""

    name: str
    """The run's name."""
    folder: Path
    """Its output folder."""
    settings: str
    """Hash of everything that its numbers depend on."""
    config: Mapping[str, Any]
    """Its configuration, nested, as plain JSON."""
    tags: Mapping[str, str]
    """Versions and fingerprints."""
    files: tuple[Path, ...] = ()
    """Files that are attached at every start."""
    measures: Mapping[Kind, str | None] = field(default_factory=dict)
    """Kind → the `measure` that its records must have; others are not comparable and are left out."""

    @property
    def place(self) -> Path:
        """The folder for what trackers keep on this machine."""
        return self.folder / "monitor"


class Tracker(Protocol):
    """A client of one tracker. Any method may raise any exception of its library."""

    def open(self, run: TrackedRun, known: str | None) -> str:
        """Continue the tracker's run with the id `known`, or begin a new one if there is none; returns the
        id."""

    def describe(self, run: TrackedRun, earlier: str | None) -> None:
        """Send configuration and tags. `earlier`: the id of the run that other settings have continued."""

    def last_steps(self) -> Mapping[Kind, int]:
        """Kind → the last step that the tracker has; kinds without any are missing."""

    def log(self, rows: Sequence[Row]) -> None:
        """Send rows."""

    def attach(self, name: str, files: Sequence[Path]) -> None:
        """Send files as the artifact `name`, in place of earlier ones of that name."""

    def close(self, status: Status | None) -> None:
        """Send the remaining data and end; None leaves the run's status as it is."""
