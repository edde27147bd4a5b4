"""docs/pretrained-study.md has the numbers of its records."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gaguide.heads.records import ChosenHeads, HeadProfile, ProfileRecord, write_profile
from gaguide.study.record_files import read_study
from tests.study.sample import sample_study
from tests.support.ranks import REPOSITORY

PAGE = REPOSITORY / "docs" / "pretrained-study.md"
RECORDS = REPOSITORY / "docs" / "records" / "pretrained-cpu"

_NOWHERE = (None,) * 6
_HEADS = tuple(
    HeadProfile(0, head, mass, None, None, 0.1, 0.1, 0.1, 0.0, None, "other", 0.01, 0.01, *_NOWHERE)
    for head, mass in enumerate((0.2, 0.1))
)
PROFILE = ProfileRecord(
    "model", "model", {}, "contrast", "words", 1, 2, 3.0, 3.0, 10, 100, None, _HEADS,
    (ChosenHeads("chosen-most-used", "most used", ((0, 0), (0, 1))),), {}, {},
)  # fmt: skip


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "examples" / "pretrained" / "page.py"))


def test_a_page_takes_the_results_between_its_marks(program: dict[str, Any], tmp_path: Path) -> None:
    page, kept = tmp_path / "page.md", tmp_path / "records"
    study = read_study(sample_study(tmp_path / "study"))
    page.write_text(f"# Before\n{program['BEGIN']}\nold\n{program['END']}\nafter\n")
    for _ in range(2):
        program["keep_records"](study, {"": PROFILE}, kept)
    assert len(list(kept.glob("tables-*"))) == 1, "records of an earlier page stay"
    program["write_page"](study, {"": PROFILE}, page)
    text = page.read_text()
    assert text.startswith("# Before\n") and text.endswith("\nafter\n") and "\nold\n" not in text
    assert "### Cost in language-model loss" in text and "### Is the guided head used?" in text
    again = read_study(kept)
    assert again.changes == () and again.means == study.means
    profiles = program["find_profiles"](again, kept)
    assert profiles == {"": PROFILE}
    assert "are 1 of the 2 of chosen-most-used (1.0 by chance)" in text
    assert "on the words is 0.2000 on average, that of the other heads 0.1000" in text
    assert program["results"](again, profiles) == program["results"](replace(study, changes=()), profiles)
    data = study.cells[0].fingerprints["data"]
    same = replace(PROFILE, settings={"text_fingerprint": data})
    assert "overestimated there, with and without" in program["results"](study, {"": same})
    assert "overestimated there, with and without" not in text
    with pytest.raises(ValueError, match="lacks the lines"):
        program["write_page"](study, {}, Path(__file__))


def test_each_size_has_its_own_profile(program: dict[str, Any], tmp_path: Path) -> None:
    study = read_study(sample_study(tmp_path / "study"))
    names = ["gpt2", "gpt2-medium"]
    settings = {"chosen": str(tmp_path / "{size}" / "plan.yaml"), "sizes": [{"name": name} for name in names]}
    study = replace(study, study=study.study | settings)
    profiles = {name: replace(PROFILE, model=name) for name in names}
    for name, profile in profiles.items():
        write_profile(tmp_path / name, profile)
    assert program["find_profiles"](study, tmp_path / "study") == profiles
    program["keep_records"](study, profiles, tmp_path / "kept")
    kept = replace(study, study=study.study | {"chosen": "elsewhere/{size}/plan.yaml"})
    assert program["find_profiles"](kept, tmp_path / "kept") == profiles
    text = program["results"](study, profiles)
    assert len(names) > 1 and [f"### Before training: {name}\n" in text for name in names] == [True] * len(
        names
    )


def test_the_pages_numbers_are_those_of_its_records(program: dict[str, Any]) -> None:
    page = PAGE.read_text("utf-8")
    if not RECORDS.is_dir():
        assert program["BEGIN"] not in page
        pytest.skip("the study has not been run to its end, and the page says so")
    study = read_study(RECORDS)
    assert program["results"](study, program["find_profiles"](study, RECORDS)) in page
