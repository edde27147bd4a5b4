"""Studies: from one file to a grid of runs, their statistics and analysis (docs/studies.md)."""

from gaguide.study.record_files import read_study
from gaguide.study.study_records import StudyRecords

__all__ = ["StudyRecords", "read_study"]
