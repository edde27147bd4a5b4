"""Runs in MLflow and trackio: the rows of record files, sent by rank 0 in the background."""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
    from gaguide.trackers.attach import attach_files, check_attach
    from gaguide.trackers.check import tracker_faults
    from gaguide.trackers.mirror import Trackers
    from gaguide.trackers.rows import STEP_NUMBERS
    from gaguide.trackers.sections import SECTIONS
    from gaguide.trackers.tracker import TrackedRun

__all__ = [
    "SECTIONS",
    "STEP_NUMBERS",
    "TrackedRun",
    "Trackers",
    "attach_files",
    "check_attach",
    "tracker_faults",
]

__getattr__ = lazy_names(__name__)
