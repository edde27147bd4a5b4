"""A study's records: they are read as written, and other folders are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gaguide.errors import UserError
from gaguide.study.record_files import STUDY, read_study, write_study, write_tables
from tests.study.sample import sample_study


def test_records_are_read_as_written(tmp_path: Path) -> None:
    first = read_study(sample_study(tmp_path / "study", prompt='<script>alert("x")</script>'))
    assert {cell.state for cell in first.cells} == {"done", "failed"}
    assert first.changes[0].prompt == '<script>alert("x")</script>'
    assert first.attention and first.losses and first.verdicts and first.means

    again = tmp_path / "again"
    again.mkdir()
    write_study(again, first)
    write_tables(again, first)
    assert read_study(again) == first


def test_a_study_before_collection_has_cells_only(tmp_path: Path) -> None:
    whole = read_study(sample_study(tmp_path / "study"))
    bare = tmp_path / "bare"
    bare.mkdir()
    write_study(bare, whole)
    assert read_study(bare) == replace(
        whole, results=(), means=(), comparisons=(), verdicts=(), shares=(), gains=(), attention=(),
        losses=(), changes=(), knock_outs=(), head_verdicts=(),
    )  # fmt: skip


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains no study\.json"):
        read_study(tmp_path)
    (tmp_path / STUDY).write_text('{"schema": 7}')
    with pytest.raises(UserError, match="schema 7"):
        read_study(tmp_path)


def test_passwords_in_addresses_are_masked(tmp_path: Path) -> None:
    sample_study(tmp_path / "study")
    records = read_study(tmp_path / "study")
    records.study["data"] = {"shards": "https://me:S3CRET@host/shards"}
    (tmp_path / "masked").mkdir()
    write_study(tmp_path / "masked", records)
    text = (tmp_path / "masked" / STUDY).read_text("utf-8")
    assert "S3CRET" not in text and "https://***@host/shards" in text
