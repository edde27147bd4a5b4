"""Record files with damaged lines: every whole record is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaguide.log import MetricsFile, read_metrics
from gaguide.report.run_records import read_runs

DAMAGE = {
    "cut": b'{"step": 4, "lm_lo',
    "not UTF-8": b'{"step": 4, "name": "\xff\xfe"}',
    "a number": b"5",
    "null": b"null",
    "a list": b"[1, 2]",
    "zeros": b"\0" * 40,
    "nested": b"[" * 100_000,
}


def damaged_file(path: Path, line: bytes) -> None:
    lines = [json.dumps({"step": step, "lm_loss": 1.0, "seconds": step}).encode() for step in range(1, 9)]
    lines[3] = line
    path.write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE)
def test_one_damaged_line_costs_one_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged_file(path, line)
    whole = [1, 2, 3, 5, 6, 7, 8]
    assert [record["step"] for record in read_metrics(path)] == whole
    assert [record["step"] for record in read_runs([tmp_path])[0].metrics] == whole
    assert capsys.readouterr().err.count("1 of 8 lines is damaged and left out") == 1
    MetricsFile(path, 7)
    assert f"{path}: 1 of 8 lines is damaged" in capsys.readouterr().out
    assert [record["step"] for record in read_metrics(path)] == whole[:-1]
    assert path.with_name("metrics.jsonl.damaged").read_bytes() == line + b"\n"
    MetricsFile(path, 7)
    assert capsys.readouterr().out == ""


def test_a_record_without_a_step_is_not_one_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"lm_loss": 1}\n{"step": "x"}\n{"step": 1}\n')
    MetricsFile(path, 1)
    assert read_metrics(path) == [{"step": 1}]


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "text": "a\xe2\x80\xa8b"}\n{"step": 2')
    assert [record["step"] for record in read_metrics(path)] == [1]
    assert capsys.readouterr() == ("", "")
