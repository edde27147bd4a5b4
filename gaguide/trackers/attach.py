"""Files added later to a run's runs in its trackers, such as a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaguide.errors import UserError, first_line
from gaguide.log import run_files
from gaguide.trackers.check import tracker_faults
from gaguide.trackers.mirror import make_tracker
from gaguide.trackers.notes import read_note
from gaguide.trackers.sections import SECTIONS
from gaguide.trackers.tracker import TrackedRun


def check_attach(folder: Path) -> None:
    """Raise a `UserError` where nothing can be attached to the run in `folder`; it sends nothing."""
    _settings(folder)


def attach_files(folder: Path, name: str, files: Sequence[Path]) -> list[str]:
    """Send `files` as the artifact `name` of the run in `folder` to its trackers; returns their names.

    Raises `UserError` where the run has no tracker, or one cannot be reached.
    """
    run = _run(folder)
    settings = _settings(folder)
    notes = {section: read_note(run.place, section) for section in settings}
    for section, own in settings.items():
        try:
            tracker = make_tracker(section, own)
            if tracker.open(run, notes[section]["id"]) != notes[section]["id"]:
                raise LookupError("the run is no longer there")
            tracker.attach(name, files)
            tracker.close(None)
        except Exception as error:  # libraries of trackers raise any kind of error
            problem = f"{section} cannot be reached or refused ({first_line(error)})"
            raise UserError.of("--attach", problem, "try again later", str(folder)) from None
    return list(settings)


def _run(folder: Path) -> TrackedRun:
    return TrackedRun(folder.name, folder, "", {}, {})


def _settings(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Section → its settings, of the trackers that the run in `folder` was sent to."""
    try:
        settings = json.loads((folder / run_files.DEEPSPEED).read_text("utf-8"))
    except (OSError, ValueError):
        settings = {}
    place = _run(folder).place
    used = [
        section
        for section in SECTIONS
        if settings.get(section, {}).get("enabled") and read_note(place, section)
    ]
    if not used:
        remedy = "train with the section mlflow or trackio of the DeepSpeed JSON"
        raise UserError.of("--attach", "is not a run that was sent to MLflow or trackio", remedy, str(folder))
    if faults := tracker_faults(settings):
        raise UserError(faults)
    return {section: settings[section] for section in used}
