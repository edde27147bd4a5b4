"""Files added later to a run's runs in its trackers, such as a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gaguide.errors import Fault, UserError, first_line
from gaguide.trackers.check import tracker_faults
from gaguide.trackers.mirror import make_tracker
from gaguide.trackers.notes import read_note
from gaguide.trackers.sections import SECTIONS
from gaguide.trackers.tracker import TrackedRun


def attach_files(folder: Path, name: str, files: Sequence[Path]) -> list[str]:
    """Send `files` as the artifact `name` of the run in `folder` to its trackers; returns their names.

    Raises `UserError` where the run has no tracker, or one cannot be reached.
    """
    try:
        settings = json.loads((folder / "deepspeed.json").read_text("utf-8"))
    except (OSError, ValueError):
        settings = {}
    run = TrackedRun(folder.name, folder, "", {}, {})
    notes = {section: read_note(run.place, section) for section in SECTIONS}
    used = [section for section in SECTIONS if settings.get(section, {}).get("enabled") and notes[section]]
    if not used:
        remedy = "train with the section mlflow or trackio of the DeepSpeed JSON"
        raise UserError(
            Fault("--attach", "is not a run that was sent to MLflow or trackio", remedy, str(folder))
        )
    if faults := tracker_faults(settings):
        raise UserError(faults)
    for section in used:
        try:
            tracker = make_tracker(section, settings[section])
            if tracker.open(run, notes[section]["id"]) != notes[section]["id"]:
                raise LookupError("the run is no longer there")
            tracker.attach(name, files)
            tracker.close(None)
        except Exception as error:  # libraries of trackers raise whatever their servers do to them
            problem = f"{section} cannot be reached or refused ({first_line(error)})"
            raise UserError(Fault("--attach", problem, "try again later", str(folder))) from None
    return used
