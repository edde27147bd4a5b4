"""Studies: from one file to a grid of runs, their statistics and analysis (docs/studies.md)."""

from gaguide.study.record_files import StudyRecords, read_study

__all__ = ["StudyRecords", "read_study"]
