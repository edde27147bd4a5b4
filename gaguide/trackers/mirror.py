"""Threads that keep trackers equal to a run's record files, without holding the run up."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaguide.errors import first_line, mask_credentials
from gaguide.log import SlowWork, say
from gaguide.trackers.notes import read_note, write_note
from gaguide.trackers.rows import FILES, Kind, Rows
from gaguide.trackers.sections import SECTIONS
from gaguide.trackers.tracker import Status, TrackedRun, Tracker

_PATIENCE: dict[Status, float] = {"finished": 120.0, "diverged": 120.0, "stopped": 15.0, "failed": 0.0}
"""Seconds that the end of a run waits for a tracker. A failed run ends at once: its ranks must say why."""
_WAIT, _MAX_WAIT = 10.0, 600.0
"""Seconds until a tracker that failed is tried again; doubled each time up to the maximum."""


class Trackers:
    """The trackers that a DeepSpeed JSON enables; on ranks other than 0 every method returns at once.

    metrics.jsonl and the other record files are the record, which trackers show. Every row is sent once,
    including rows of earlier starts and of times when the tracker could not be reached. A tracker that fails
    never ends a run; it is reported once.
    """

    def __init__(self, settings: Mapping[str, Any], is_main: bool) -> None:
        self._settings = {
            name: settings[name]
            for name in SECTIONS
            if is_main and isinstance(settings.get(name), Mapping) and settings[name].get("enabled")
        }
        self._mirrors: list[_Mirror] = []

    def __bool__(self) -> bool:
        return bool(self._settings)

    def start(self, run: TrackedRun) -> None:
        """Begin to send; the record files must have been opened by this start of the run."""
        self._mirrors = [_Mirror(name, section, run) for name, section in self._settings.items()]
        for mirror in self._mirrors:
            mirror.start()

    def notify(self) -> None:
        """Report that a record file has grown."""
        for mirror in self._mirrors:
            mirror.wake.set()

    def close(self, status: Status, files: tuple[Path, ...] = (), patience: float | None = None) -> None:
        """Send the rest with `files`, and end the trackers' runs.

        Waits for two minutes at most, or for `patience` seconds where that is less.
        """
        for mirror in self._mirrors:
            mirror.end(status, files)
        deadline = time.monotonic() + min(_PATIENCE[status], patience or math.inf)
        with SlowWork("sending the last numbers to trackers", shown=bool(self._mirrors)):
            for mirror in self._mirrors:
                mirror.join(max(0.0, deadline - time.monotonic()))
        for mirror in self._mirrors:
            if status != "failed" and not mirror.is_complete:
                say(f"{mirror.section} lacks the last numbers; the same command sends them when it is back")
        self._mirrors = []


class _Mirror(threading.Thread):
    """Sends the rows of a run to one tracker. A daemon: it never keeps the process alive."""

    def __init__(self, section: str, settings: Mapping[str, Any], run: TrackedRun) -> None:
        super().__init__(name=f"tracker-{section}", daemon=True)
        self.section, self.settings, self.run_ = section, settings, run
        self.wake = threading.Event()
        self.wake.set()
        self.is_complete = False
        """Whether everything was sent when the run ended."""
        self._end: tuple[Status, tuple[Path, ...]] | None = None
        self._tracker: Tracker | None = None
        self._sent: dict[Kind, int] = {}
        self._rows = [Rows(kind, run.folder, run.measures.get(kind)) for kind in FILES]
        self._has_failed = False

    def end(self, status: Status, files: tuple[Path, ...]) -> None:
        """Ask the thread to send what is left, and to end."""
        self._end = (status, files)
        self.wake.set()

    def run(self) -> None:
        """Send rows whenever there are new ones, until `end`; `threading` calls it."""
        wait, resume_at = _WAIT, 0.0
        while True:
            self.wake.wait(max(0.0, resume_at - time.monotonic()) if resume_at else None)
            self.wake.clear()
            end = self._end
            if end is None and time.monotonic() < resume_at:
                continue
            try:
                self._send()
                if end is not None:
                    self._finish(*end)
                    return
                wait, resume_at = _WAIT, 0.0
            except Exception as error:  # libraries of trackers raise any kind of error
                self._report(error)
                self._tracker = (
                    None  # when opened again, it reports which of the rows being sent have arrived
                )
                if end is not None:
                    return
                wait, resume_at = min(2 * wait, _MAX_WAIT), time.monotonic() + wait

    def _send(self) -> None:
        if self._tracker is None:
            self._tracker = self._open()
        for rows in self._rows:
            for found, end in rows.pending():
                new = [row for row in found if row.step > self._sent.get(row.kind, -1)]
                if new:
                    self._tracker.log(new)
                    self._sent[rows.kind] = new[-1].step
                rows.done(end)

    def _open(self) -> Tracker:
        """The tracker with its run: that of the last start with the same settings, else a new one."""
        run = self.run_
        tracker = make_tracker(self.section, self.settings)
        kept = read_note(run.place, self.section)
        same = kept.get("settings") == run.settings
        found = tracker.open(run, kept.get("id") if same else None)
        write_note(run.place, self.section, found, run.settings)
        tracker.describe(run, None if same else kept.get("id"))
        self._sent = dict(tracker.last_steps())
        tracker.attach("run", run.files)
        return tracker

    def _finish(self, status: Status, files: tuple[Path, ...]) -> None:
        assert self._tracker is not None
        if files:
            self._tracker.attach("run", files)
        self._tracker.close(status)
        self.is_complete = True

    def _report(self, error: Exception) -> None:
        if not self._has_failed:
            reason = mask_credentials(first_line(error))[:500]
            say(f"{self.section} cannot be reached or refused ({reason}); the run is not affected")
        self._has_failed = True


def make_tracker(section: str, settings: Mapping[str, Any]) -> Tracker:
    """The client of a tracker, with the settings of its section; imports its library."""
    if section == "mlflow":
        from gaguide.trackers.mlflow_tracker import MlflowTracker
        from gaguide.trackers.sections import MlflowSection

        return MlflowTracker(MlflowSection(**settings))
    from gaguide.trackers.sections import TrackioSection
    from gaguide.trackers.trackio_tracker import TrackioTracker

    return TrackioTracker(TrackioSection(**settings))
