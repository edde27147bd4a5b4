"""The cost of a study before it runs: one row for all seeds, ranges instead of points."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gaguide.cost import spread
from gaguide.errors import UserError
from gaguide.study.dry_run import check_plans, estimate_cells, print_costs, size_shape
from gaguide.study.file import load_study
from gaguide.study.grid import make_grid
from gaguide.study.measuring_cost import ablation_passes, evaluation_cost, measuring_lines


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


def test_evaluation_and_the_removal_of_heads_have_a_cost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    changes = {"sizes": "pico", "seeds": "0", "experiments": "finetuned,1-negation,3-negation"}
    grid = make_grid(load_study("laptop", changes))
    print_costs(grid, "h100")
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"removal of heads left: 3 cells, each [\d.]+ to [\d.]+ passes over 64 blocks", printed)
    assert re.search(r"evaluation left: \d+ cells, about [\d.]+M tokens", printed)
    shape = size_shape("pico", grid, None)
    one = next(cell for cell in grid.cells if cell.experiment == "1-negation")
    # Two layers, one guided head and three controls in each, mean and zero: four removals from layer 0 on,
    # four from layer 1, and both guided heads, and as many controls, at once; the means, and the start.
    assert ablation_passes(grid, one, shape) == (3 + 2 * (4 + 4 / 2 + 2), 1 + 2 * 10)
    cost = evaluation_cost(grid, {"pico": shape}, "h100")
    assert (
        cost is not None
        and cost.gpu_seconds > 0
        and cost.cells == sum(c.model is not None for c in grid.cells)
    )


def test_plans_that_do_not_fit_a_size_are_found_before_any_cell_is_trained(tmp_path: Path) -> None:
    plan = "{mode: words, plan: [{pattern: contrast, heads: [0, 40]}, {pattern: negation, heads: [0]}]}"
    (tmp_path / "plan.yaml").write_text(f"chosen-random: {plan}\n")
    changes = {"sizes": "pico,nano", "seeds": "0,1", "output": str(tmp_path / "out")}
    check_plans(make_grid(load_study("laptop", changes)))
    changes |= {"chosen": str(tmp_path / "plan.yaml"), "experiments": "finetuned,chosen-random"}
    with pytest.raises(UserError) as caught:
        check_plans(make_grid(load_study("laptop", changes)))
    text = str(caught.value)
    assert text.count("guidance.heads = 40") == 2  # of each size, once for both seeds
    assert "(pico, chosen-random)" in text and "guided to both 'contrast' and 'negation'" in text


def test_what_measuring_costs_says_which_sizes_it_leaves_out(tmp_path: Path) -> None:
    changes = {"sizes": "pico,nano", "seeds": "0", "experiments": "finetuned"}
    grid = make_grid(load_study("laptop", changes | {"output": str(tmp_path)}))
    shape = size_shape("pico", grid, None)
    both, one = ({"pico": shape, "nano": shape}, {"pico": shape})
    assert not any(
        "without" in line and "nano" in line for line in measuring_lines(grid, both, "h100", (1, 2))
    )
    first, *_ = measuring_lines(grid, one, "h100", (1, 2))
    assert first == "what is left to measure is counted without nano, whose shape is not known"
    all_of, some = (evaluation_cost(grid, shapes, "h100") for shapes in (both, one))
    assert all_of is not None and some is not None and all_of.cells == 2 * some.cells


def test_every_cell_of_the_scaling_study_fits() -> None:
    for gpu in ("h100", "a100-40"):
        for cost in estimate_cells(make_grid(load_study("scaling", {"seeds": "0"})), gpu):
            assert cost.estimate is not None and cost.estimate.fits, (gpu, cost)


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="--gpu"):
        print_costs(make_grid(load_study("scaling", {"seeds": "0"})), "h10")
