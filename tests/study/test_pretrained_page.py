"""docs/pretrained-study.md has the numbers of its records."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gaguide.study.record_files import read_study
from tests.study.sample import sample_study
from tests.support.ranks import REPOSITORY

PAGE = REPOSITORY / "docs" / "pretrained-study.md"
RECORDS = REPOSITORY / "docs" / "records" / "pretrained-cpu"


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "examples" / "pretrained" / "page.py"))


def test_a_page_takes_the_results_between_its_marks(program: dict[str, Any], tmp_path: Path) -> None:
    page, kept = tmp_path / "page.md", tmp_path / "records"
    study = read_study(sample_study(tmp_path / "study"))
    page.write_text(f"# Before\n{program['BEGIN']}\nold\n{program['END']}\nafter\n")
    for _ in range(2):
        program["keep_records"](study, kept)
    assert len(list(kept.glob("tables-*"))) == 1, "records of an earlier page stay"
    program["write_page"](study, page)
    text = page.read_text()
    assert text.startswith("# Before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    assert "### Cost in language-model loss" in text and "### Is the guided head used?" in text
    again = read_study(kept)
    assert again.changes == () and again.means == study.means
    assert program["results"](again) == program["results"](replace(study, changes=()))
    with pytest.raises(ValueError, match="lacks the lines"):
        program["write_page"](study, Path(__file__))


def test_the_pages_numbers_are_those_of_its_records(program: dict[str, Any]) -> None:
    page = PAGE.read_text("utf-8")
    if not RECORDS.is_dir():
        assert program["BEGIN"] not in page
        pytest.skip("the study has not been run to its end, and the page says so")
    assert program["results"](read_study(RECORDS)) in page
