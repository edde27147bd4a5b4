"""Verdicts on heads over seeds, from made-up knock-outs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy import stats

from gaguide.stats.paired import holm
from gaguide.study.analysis_records import HeadKnockOut
from gaguide.study.file import load_study
from gaguide.study.grid import make_grid
from gaguide.study.head_verdicts import head_verdicts


def row(experiment: str, seed: int, head: int, loss: float | None, after: float = 0.9) -> HeadKnockOut:
    return HeadKnockOut(
        "pico", experiment, experiment != "finetuned", 1, head, "contrast", "mean", 0.02 + 0.001 * seed,
        after, 0.001, loss, -0.1, 0.1, 0.8, loss, loss, "moved", "not used", f"{experiment}-{seed}", seed,
    )  # fmt: skip


LOSSES = {0: (0.051, 0.049, 0.050), 1: (-0.031, -0.030, -0.029), 2: (0.02, -0.02, 0.001)}
TWINS = (0.010, 0.011, 0.012)


def test_over_seeds_by_t_tests_corrected_over_the_heads() -> None:
    rows = [row("1-negation", seed, head, LOSSES[head][seed]) for seed in range(3) for head in LOSSES]
    rows += [row("finetuned", seed, 0, TWINS[seed], after=0.02 + 0.001 * seed) for seed in range(3)]
    found = {(one.experiment, one.head): one for one in head_verdicts(rows)}
    assert [found["1-negation", head].verdict for head in LOSSES] == [
        "attention moved, used", "attention moved, harmful", "attention moved, not used",
    ]  # fmt: skip
    want = holm([float(stats.ttest_1samp(losses, 0).pvalue) for losses in LOSSES.values()])
    assert [found["1-negation", head].p_used for head in LOSSES] == pytest.approx(want)
    first = found["1-negation", 0]
    assert (first.seeds, first.test, first.loss) == (3, "t over seeds", pytest.approx(0.05))
    assert first.over_finetuned == pytest.approx(0.05 - 0.011)
    differences = [a - b for a, b in zip(LOSSES[0], TWINS, strict=True)]
    assert first.p_over == pytest.approx(float(stats.ttest_1samp(differences, 0).pvalue))
    assert found["1-negation", 1].over_finetuned is None
    twin = found["finetuned", 0]
    assert not twin.guided and twin.over_finetuned is None and twin.verdict == "attention not moved, used"


def test_a_head_is_compared_with_that_of_its_own_unguided_twin() -> None:
    """A model that starts from random weights is compared with one that does, not with `finetuned`."""
    losses = {"scratch-1-negation": 0.05, "scratch": 0.04, "finetuned": 0.01}
    rows = [row(name, seed, 0, loss + 0.001 * seed) for name, loss in losses.items() for seed in range(2)]
    grid = make_grid(load_study("used", {}))
    twins = {"scratch-1-negation": grid.twin("scratch-log-mass")}
    twins |= {name: grid.twin(name) for name in ("scratch", "finetuned")}
    assert grid.twin("squared-3") == "finetuned"
    found = {one.experiment: one for one in head_verdicts(rows, twins)}
    assert found["scratch-1-negation"].over_finetuned == pytest.approx(0.01)
    assert [found[name].twin for name in losses] == ["scratch", None, None]
    assert found["scratch"].over_finetuned is None


def test_one_seed_keeps_the_tests_over_its_blocks() -> None:
    one = replace(row("1-negation", 0, 0, 0.05), p_used=0.01, low=0.03, high=0.07)
    (verdict,) = head_verdicts([one])
    assert (verdict.test, verdict.p_used, verdict.low, verdict.high) == ("t over blocks", 0.01, 0.03, 0.07)
    assert verdict.verdict == "attention moved, used"


def test_seeds_without_a_number_are_no_verdict() -> None:
    rows = [row("1-negation", seed, 0, None) for seed in range(2)]
    (verdict,) = head_verdicts(rows)
    assert verdict.loss is None and verdict.used == "not measured" and verdict.near is None


def test_a_verdict_over_seeds_needs_a_number_of_each() -> None:
    """The loss of one of three seeds is not finite: the other two are not the seeds."""
    rows = [row("1-negation", seed, 0, None if seed == 2 else LOSSES[0][seed]) for seed in range(3)]
    (verdict,) = head_verdicts(rows)
    assert verdict.loss is None and verdict.p_used is None and verdict.used == "not measured"
    (verdict,) = head_verdicts(rows[1:])  # one of two: no test, which is not the same as no effect
    assert verdict.used == "not measured"


def test_edges_to_other_words_are_not_those_of_the_twin() -> None:
    guided, twin = row("1-negation", 0, 0, 0.05), replace(row("finetuned", 0, 0, 0.01), pattern="negation")
    assert head_verdicts([guided, twin])[0].over_finetuned == pytest.approx(0.04)  # the whole output
    edges = [replace(one, method="edges") for one in (guided, twin)]
    assert head_verdicts(edges)[0].over_finetuned is None


def test_equal_changes_of_all_seeds_have_a_p_value_and_a_single_block_has_none() -> None:
    equal, twins = [row("1-negation", seed, 0, 0.05) for seed in range(3)], [row("finetuned", 1, 0, 0.01)]
    verdict = head_verdicts([*equal, *twins])[0]
    assert verdict.p_used == 0.25 and verdict.used == "not used"  # what three seeds can show by their signs
    assert (verdict.seeds, verdict.seeds_over, verdict.p_over) == (3, 1, None)
    (single,) = head_verdicts([replace(equal[0], p_used=None, p_moved=None)])
    assert single.verdict == "attention not tested, not tested"
