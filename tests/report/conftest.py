"""A small study's real files, with a hostile text among its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaguide.study.record_files import read_study
from gaguide.study.study_records import StudyRecords
from tests.report.synthetic import HOSTILE
from tests.study.sample import sample_study


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_study(tmp_path_factory.mktemp("study") / "sample", HOSTILE)


@pytest.fixture(scope="package")
def study(folder: Path) -> StudyRecords:
    return read_study(folder)
