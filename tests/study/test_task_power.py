"""What a study's tasks can show, before it runs and with finished cells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gaguide.stats.power import Sensitivity
from gaguide.study.file import load_study
from gaguide.study.grid import make_grid
from gaguide.study.record_files import read_study, write_tables
from gaguide.study.task_power import CHANGED, print_powers, task_powers
from tests.study.sample import sample_study


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"{at} is", "classes": [" odd", " even"], "answer_index": at % 2, "group": f"g{at // 4}"}
        for at in range(200)
    ]
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _study(tmp_path: Path, tasks: str, seeds: str = "0,1,2") -> dict[str, str]:
    return {"tasks": tasks, "seeds": seeds, "output": str(tmp_path / "out")}


def test_every_task_says_what_its_examples_can_show(quiz: Path, tmp_path: Path) -> None:
    grid = make_grid(load_study("laptop", _study(tmp_path, f"{quiz},synthetic-contrast,memo-trap")))
    grouped, loss, missing = task_powers(grid)
    assert (grouped.task, grouped.examples, grouped.groups, grouped.loss) == ("quiz", 200, 50, None)
    wanted = [Sensitivity(True, 200, share, 4.0).detectable for share in CHANGED]
    assert list(grouped.accuracy) == wanted
    assert wanted[0] is not None and wanted[1] is not None and 0.05 < wanted[0] < wanted[1]
    assert loss.examples is not None and loss.accuracy == ()
    assert loss.loss == pytest.approx((1.959964 + 0.841621) / loss.examples**0.5, rel=1e-5)
    assert missing.examples is None and missing.problem


def test_the_dry_run_prints_it_with_what_finished_cells_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "170")
    grid = make_grid(load_study("laptop", _study(tmp_path, "synthetic-contrast,synthetic-flip")))
    print_powers(grid)
    printed = capsys.readouterr().out
    assert "so far" not in printed
    # For 3 seeds: 2 degrees of freedom; by simulation in tests/stats.
    assert "3 seeds: a t-test shows mean differences of" in printed
    assert "before Holm's correction over 2 tasks" in printed
    sample = read_study(sample_study(grid.folder))
    print_powers(grid)
    assert "so far" not in capsys.readouterr().out  # the sample's comparisons are of another task
    rows = tuple(
        replace(
            row, task="synthetic-contrast", metric="loss", detectable=0.125 if row.level == "seed" else 0.5
        )
        for row in sample.comparisons
    )
    write_tables(grid.folder, replace(sample, comparisons=rows))
    print_powers(grid)
    line = next(line for line in capsys.readouterr().out.splitlines() if "synthetic-contrast" in line)
    assert "0.1250" in line and "0.5000" in line
    once = make_grid(load_study("laptop", _study(tmp_path, "synthetic-contrast", "0")))
    print_powers(once)
    assert "One seed has no test over seeds" in capsys.readouterr().out
