"""The cost of a study before it runs: one row for all seeds, ranges instead of points."""

from __future__ import annotations

import re

import pytest

from gaguide.cost import spread
from gaguide.errors import UserError
from gaguide.study.dry_run import estimate_cells, print_costs
from gaguide.study.file import load_study
from gaguide.study.grid import make_grid


def test_rows_hold_all_seeds_and_hours_are_ranges(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    grid = make_grid(load_study("scaling", {"sizes": "gpt2,gpt2-medium", "seeds": "0,1"}))
    print_costs(grid, "h100")
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "finetuned" in line]
    assert len(rows) == 2 and all(re.search(r"│ +2 │", row) for row in rows)
    hours = [cost.estimate.gpu_hours for cost in estimate_cells(grid, "h100") if cost.estimate is not None]
    assert len(hours) == 16
    known = spread("h100")
    low, high = sum(hours) / known.fastest, sum(hours) / known.slowest  # type: ignore[arg-type]
    assert f"training left: {low:,.0f} to {high:,.0f} GPU-hours" in printed
    assert f"reached {known.slowest:.2f} to {known.fastest:.2f} times" in printed


def test_every_cell_of_the_scaling_study_fits() -> None:
    for gpu in ("h100", "a100-40"):
        for cost in estimate_cells(make_grid(load_study("scaling", {"seeds": "0"})), gpu):
            assert cost.estimate is not None and cost.estimate.fits, (gpu, cost)


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="--gpu"):
        print_costs(make_grid(load_study("scaling", {"seeds": "0"})), "h10")
