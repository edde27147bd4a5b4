"""The statistics against published and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from gaguide.evaluate.results.intervals import mean, proportion
from gaguide.stats.groups import FEW, critical_value, tail_share
from gaguide.stats.paired import holm, mcnemar, over_seeds, paired_bootstrap, rate_change, t_interval


def outcomes(both: int, now: int, before: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Answers with these counts of (both right, only the new one, only the baseline, none)."""
    correct = [True] * (both + now) + [False] * (before + neither)
    baseline = [True] * both + [False] * now + [True] * before + [False] * neither
    return correct, baseline


def test_mcnemar_gives_the_published_p_values() -> None:
    # Airway hyper-responsiveness of 21 children before and after stem cell transplantation (Bentur et al.
    # 2009), the example of Fagerland, Lydersen and Laake, BMC Med Res Methodol 13:91 (2013): 1 and 7 changed;
    # exact conditional p = 0.0703, mid-p = 0.0391.
    found = mcnemar(*outcomes(1, 7, 1, 12))
    assert (found.helped, found.hurt) == (7, 1)
    assert found.p_exact == pytest.approx(0.0703125)
    assert found.p == pytest.approx(0.0390625)
    assert found.difference == pytest.approx(6 / 21)


def test_mcnemar_interval_is_agresti_and_mins() -> None:
    # By hand for 15 helped, 5 hurt of 100: 10/102 ± 1.959964 √(21 − 100/102)/102.
    found = mcnemar(*outcomes(40, 15, 5, 40))
    half = 1.959964 * math.sqrt(21 - 100 / 102) / 102
    assert (found.low, found.high) == pytest.approx((10 / 102 - half, 10 / 102 + half))


def test_mcnemar_mid_p_by_hand() -> None:
    # 0 of 5 changes for the worse: exact 2/2^5 = 0.0625; the mid-p takes off half of each tail's last term,
    # 2 (1/2)^5 / 2 = 0.03125.
    found = mcnemar(*outcomes(10, 5, 0, 10))
    assert (found.p_exact, found.p) == (pytest.approx(0.0625), pytest.approx(0.03125))


def test_mcnemar_without_a_changed_example_has_p_1() -> None:
    found = mcnemar(*outcomes(5, 0, 0, 5))
    assert (found.p, found.p_exact, found.difference) == (1.0, 1.0, 0.0)
    assert mcnemar(*outcomes(0, 3, 3, 0)).p == 1.0


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, each at least the one before: 0.04, 0.06, 0.06, 0.06.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([None]) == [None]
    drawn = np.random.default_rng(3).random(12) ** 3
    assert holm(drawn.tolist()) == pytest.approx(multipletests(drawn, method="holm")[1].tolist())


def test_t_interval_of_students_own_data() -> None:
    # Student 1908: extra hours of sleep, ten patients, two drugs; the paired difference is 1.58 hours,
    # t = 4.0621, p = 0.002833, 95% interval 0.7001 to 2.4599 (R's documentation of t.test prints them).
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = over_seeds([b - a for a, b in zip(first, second)])
    assert found.difference == pytest.approx(1.58)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858))


def test_one_seed_has_no_interval() -> None:
    assert t_interval([0.3]) is None and t_interval([0.6, 0.6, 0.6]) is None
    assert over_seeds([0.3]).p is None
    alike = over_seeds([0.5 - 0.4, 0.6 - 0.5])  # equal but for rounding: no spread to test against
    assert (alike.low, alike.high, alike.p) == (None, None, 0.5)
    assert over_seeds([0.1] * 6).p == 2 / 2**6  # the exact sign-flip test, with no spread to estimate
    assert rate_change([0.2, 0.1, 0.4], [2, 1, 4]).p == paired_bootstrap([0.3] * 3, [0.1] * 3).p == 0.25
    assert rate_change([0.0, 0.0], [2, 1]).p == 1.0
    assert over_seeds([0.0, 0.0, 0.0]).p == 1.0


def test_bootstrap_agrees_with_the_normal_interval_where_that_holds() -> None:
    rng = np.random.default_rng(5)
    baseline = rng.normal(3, 1, 400)
    found = paired_bootstrap(baseline + rng.normal(0.1, 0.5, 400), baseline)
    error = 0.5 / math.sqrt(400)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.2 * error)
    assert found.p is not None and found.p < 0.01
    assert paired_bootstrap(baseline, baseline).p == 1.0


def test_bootstrap_of_one_difference_among_sixty_by_hand() -> None:
    # Resampled means are a binomial number of 60 draws: 0 with probability (59/60)^60, at most 3 with 0.98.
    found = paired_bootstrap([60.0, *[0.0] * 59], [0.0] * 60)
    assert (found.difference, found.low, found.high) == (1.0, 0.0, 3.0)
    share = (59 / 60) ** 60
    assert found.p == pytest.approx(2 * share, abs=4 * 2 * math.sqrt(share * (1 - share) / 4999))


def test_two_differences_have_students_interval_and_p() -> None:
    found = paired_bootstrap([0.0, 5.0], [1.0, 2.0])  # −1 and 3: mean 1, standard error 2
    assert found.difference == 1.0
    assert (found.low, found.high) == pytest.approx((1 - 2 * 12.7062, 1 + 2 * 12.7062), abs=1e-3)
    assert found.p == pytest.approx(1 - 2 * math.atan(0.5) / math.pi)  # Cauchy's distribution


@pytest.mark.parametrize("count", [5, 12, 30])
def test_few_examples_keep_the_level(count: int) -> None:
    """Of true hypotheses 5% are rejected, where the bootstrap rejects 12%, 8% and 6% of them."""
    rng, rejected, missed = np.random.default_rng(count), 0, 0
    for _ in range(300):
        values = rng.normal(0, 1, count)
        found, alone = paired_bootstrap(values, np.zeros(count)), mean(values.tolist())
        assert found.p is not None and found.low is not None and found.high is not None
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        rejected += found.p < 0.05
        missed += alone.low > 0 or alone.high < 0
    assert 5 <= rejected <= 26 and missed == rejected  # 300 × 0.05 = 15, 3.8 of standard deviation


def test_percentile_intervals_of_few_are_as_wide_as_students() -> None:
    for units in (5, 10, 49):
        want = norm.sf(student.isf(0.025, units - 1) * math.sqrt(units / (units - 1)))
        assert tail_share(units) == pytest.approx(want)
        assert critical_value(units) == pytest.approx(student.isf(0.025, units - 1))
    assert tail_share(FEW) == 0.025 and critical_value(FEW) == pytest.approx(norm.isf(0.025))
    assert math.isnan(critical_value(1))


def test_a_clear_loss_stays_clear_after_correction_over_many() -> None:
    rng = np.random.default_rng(2)
    clear = paired_bootstrap(rng.normal(1, 1, 200), np.zeros(200))
    assert clear.p is not None and clear.p < 1e-15  # no resampled mean is below 0
    assert holm([clear.p, *[0.5] * 125])[0] < 0.05 < holm([2 / 5000, *[0.5] * 125])[0]
    faint = paired_bootstrap(rng.normal(0.15, 1, 200), np.zeros(200))
    assert (faint.p or 0) > 0.004 and round((faint.p or 0) * 2500, 6).is_integer()  # the bootstrap's own


def test_bootstrap_keeps_its_level() -> None:
    rng = np.random.default_rng(1)
    below = 0
    for at in range(200):
        p = paired_bootstrap(rng.normal(0, 1, 60), np.zeros(60), seed=at).p
        below += p is not None and p < 0.05
    assert 2 <= below <= 22  # 200 × 0.05 = 10, 3.1 of standard deviation, a little more for 60 examples


def test_a_rate_weighs_blocks_by_their_tokens() -> None:
    found = paired_bootstrap([1.0, 3.0, 7.0], [0.0] * 3, weights=[1, 3, 0])
    assert found.difference == 2.5  # sums 1 and 9 are 1.5 off the rate, hence an error of 0.75
    assert (found.low, found.high) == pytest.approx((2.5 - 0.75 * 12.7062, 2.5 + 0.75 * 12.7062), abs=1e-3)
    # Blocks 1 and 2 are one group: sums 1 + 3 × 2 and 4 × 5 of 4 tokens each.
    grouped = paired_bootstrap([1.0, 2.0, 5.0], [0.0] * 3, groups="aab", weights=[1, 3, 4])
    assert (grouped.difference, grouped.groups) == (27 / 8, 2)
    assert grouped.high == pytest.approx(27 / 8 + 1.625 * 12.7062, abs=1e-3)


def test_a_rates_interval_is_that_of_the_bootstrap_where_blocks_are_equal() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.3, 1.0, 80)
    mean = paired_bootstrap(values, np.zeros(80))
    assert paired_bootstrap(values, np.zeros(80), weights=[5] * 80) == mean
    rate = paired_bootstrap(values, np.zeros(80), weights=[5] * 79 + [5.0001])
    assert rate.difference == pytest.approx(mean.difference, abs=1e-5)
    assert rate.low == pytest.approx(mean.low, abs=0.02) and rate.high == pytest.approx(mean.high, abs=0.02)
    assert rate.p == pytest.approx(mean.p, abs=0.02)


def test_a_rate_without_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match="positive"):
        paired_bootstrap([0.0], [0.0], weights=[0])


def test_groups_of_one_example_change_nothing() -> None:
    correct, baseline = outcomes(40, 15, 5, 40)
    assert mcnemar(correct, baseline, list(range(100))) == mcnemar(correct, baseline)
    rng = np.random.default_rng(2)
    values, zeros = rng.normal(0.2, 1, 50), np.zeros(50)
    assert paired_bootstrap(values, zeros, groups=list(range(50))) == paired_bootstrap(values, zeros)


def test_mcnemar_of_groups_by_hand() -> None:
    # Groups move by +2, +1 and −1 of two examples each: of the 8 ways of swapping groups |T| is 4, 2, 2, 0
    # twice each; observed 2. P(|T| ≥ 2) = 6/8, of which 4/8 exactly.
    correct = [True, True, True, False, False, False]
    baseline = [False, False, False, False, True, False]
    found = mcnemar(correct, baseline, ["a", "a", "b", "b", "c", "c"])
    assert (found.p_exact, found.p) == (pytest.approx(6 / 8), pytest.approx(6 / 8 - 4 / 8 / 2))
    assert (found.helped, found.hurt, found.difference) == (3, 1, pytest.approx(2 / 6))
    # Groups of 5 that all move as one are five times the evidence of a group, not of an example.
    alike = mcnemar([True] * 30, [False] * 30, [at // 5 for at in range(30)])
    alone = mcnemar([True] * 6, [False] * 6)
    assert (alike.p, alike.p_exact) == pytest.approx((alone.p, alone.p_exact))
    assert (alike.low, alike.high) == pytest.approx((alone.low, alone.high))


def test_tests_of_groups_keep_their_level_where_those_of_examples_do_not() -> None:
    rng = np.random.default_rng(4)
    groups = [at // 6 for at in range(180)]
    below = {"groups": 0, "examples": 0, "bootstrap": 0, "bootstrap of examples": 0}
    for seed in range(100):
        common = np.repeat(rng.normal(0, 1, 30), 6)
        correct, baseline = common + rng.normal(0, 0.5, 180) > 0, rng.normal(0, 1, 180) > 0
        below["groups"] += (mcnemar(correct, baseline, groups).p or 1) < 0.05
        below["examples"] += (mcnemar(correct, baseline).p or 1) < 0.05
        zeros = np.zeros(180)
        below["bootstrap"] += (paired_bootstrap(common, zeros, seed, groups).p or 1) < 0.05
        below["bootstrap of examples"] += (paired_bootstrap(common, zeros, seed).p or 1) < 0.05
    assert below["groups"] <= 12 and below["bootstrap"] <= 15  # 100 × 0.05 = 5, 2.2 of standard deviation
    assert below["examples"] >= 15 and below["bootstrap of examples"] >= 30


@pytest.mark.parametrize("count", [4, 10])
def test_intervals_of_a_share_over_few_groups_hold_it(count: int) -> None:
    """Groups of 6 with a share of their own: a normal interval holds the true share in 89% and 93%."""
    rng, groups, held = np.random.default_rng(count), np.repeat(range(count), 6).tolist(), 0
    for _ in range(400):
        common = np.repeat(rng.normal(0, 0.6**0.5, count), 6)
        hits = common + rng.normal(0, 0.4**0.5, len(groups)) < norm.ppf(0.7)
        found = proportion(hits.tolist(), groups)
        held += found.low <= 0.7 <= found.high
    assert held / 400 >= 0.94
    single = proportion([True] * 6, [0] * 6)
    assert (single.low, single.high) == (proportion([True]).low, 1.0)


def test_a_group_is_needed_for_every_example() -> None:
    with pytest.raises(ValueError, match="2 groups of 3"):
        mcnemar([True] * 3, [False] * 3, ["a", "b"])
