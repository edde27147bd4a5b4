"""Power and effect sizes against published numbers, hand computation and simulation of the tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gaguide.stats.paired import mcnemar, paired_bootstrap
from gaguide.stats.power import Sensitivity, effect_size, seeds_detectable, sensitivity


def test_examples_needed_are_connors() -> None:
    # Connor (1987): changed 0.3, difference 0.1, two-sided 0.05, power 0.8:
    # (1.95996 √0.3 + 0.84162 √(0.3 − 0.01))² / 0.01 = 233.1, as by hand.
    assert Sensitivity(True, 100, 0.3).needed(0.1) == 234
    assert Sensitivity(True, 100, 0.3).needed(-0.1) == 234
    assert Sensitivity(True, 100, 0.3).needed(0.0) is None


@pytest.mark.parametrize("count", [12, 30, 150, 600])
def test_mcnemar_shows_a_detectable_difference_in_four_of_five_draws(count: int) -> None:
    changed = 0.25
    found = Sensitivity(True, count, changed, 1.0)
    size = found.detectable
    assert size is not None and found.power(size) == pytest.approx(0.8)
    changed = max(changed, size)  # a difference needs at least as many changed examples
    rng = np.random.default_rng(count)
    draws = rng.multinomial(count, [(changed + size) / 2, (changed - size) / 2, 1 - changed], 1500)
    shown = [_p(helped, hurt, rest) < 0.05 for helped, hurt, rest in draws]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.04)


def _p(helped: int, hurt: int, rest: int) -> float:
    found = mcnemar([True] * (helped + rest) + [False] * hurt, [False] * helped + [True] * (rest + hurt))
    assert found.p is not None
    return found.p


def test_power_of_losses_is_that_of_the_normal_test() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 2, 400)
    found = sensitivity(values, np.zeros(400), is_binary=False)
    assert found is not None
    error = values.std(ddof=1) / 20
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)
    expected = stats.norm.cdf(0.3 / error - 1.959964) + stats.norm.cdf(-0.3 / error - 1.959964)
    assert found.power(0.3) == found.power(-0.3) == pytest.approx(expected, abs=1e-6)
    assert found.power(0.0) == pytest.approx(0.05)


@pytest.mark.parametrize(("count", "size"), [(5, 1), (12, 1), (8, 4)])
def test_few_losses_show_a_detectable_difference_in_four_of_five_draws(count: int, size: int) -> None:
    # As many examples, or groups of equal members, get Student's test; a normal one would say a smaller
    # difference, which five of them show in 0.57 of draws.
    groups = None if size == 1 else np.repeat(range(count), size).tolist()
    found = Sensitivity(False, count * size, 1.0, float(size), None if size == 1 else count)
    detectable = found.detectable
    assert detectable is not None and found.power(detectable) == pytest.approx(0.8)
    rng, zeros = np.random.default_rng(count), np.zeros(count * size)
    draws = [np.repeat(rng.normal(detectable, 1, count), size) for _ in range(500)]
    shown = [(paired_bootstrap(one, zeros, groups=groups).p or 1) < 0.05 for one in draws]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("size", [1, 4])
def test_losses_needed_are_the_fewest_whose_test_has_the_power(size: int) -> None:
    def units(count: int) -> Sensitivity:
        return Sensitivity(False, count * size, 1.0, float(size), None if size == 1 else count)

    # Cohen (1988): d = 0.5, two-sided 0.05, power 0.8 of a paired t-test needs 34 pairs; d = 1 needs 10.
    assert (units(20).needed(0.5), units(20).needed(1.0)) == (34 * size, 10 * size)
    assert units(34).power(0.5) >= 0.8 > units(33).power(0.5)
    assert units(20).needed(0.1) == pytest.approx((1.959964 + 0.841621) ** 2 * 100 * size, abs=1)


def test_examples_of_weight_0_show_nothing() -> None:
    rng = np.random.default_rng(6)
    values, weights = rng.normal(0, 1, 30), np.r_[np.ones(12), np.zeros(18)]
    counted = sensitivity(values[:12], np.zeros(12), False)
    assert sensitivity(values, np.zeros(30), False, weights=weights) == counted


def test_no_power_is_claimed_below_the_smallest_p_of_mcnemar() -> None:
    # Four changed examples have a mid-p of at least 2^-4 = 0.0625, five one of 0.03125, in one direction.
    assert Sensitivity(True, 4, 0.9).detectable is None and Sensitivity(True, 4, 0.9).power(1.0) == 0
    assert Sensitivity(True, 5, 0.9).power(1.0) == 1
    assert Sensitivity(True, 3, 0.8).needed(1.0) == 5
    # By hand: of 6 changed, all gained or all lost (p = 2^-6); 5 of 6 have p = 14/64 − 6/64 = 0.125.
    assert Sensitivity(True, 6, 1.0).power(0.8) == pytest.approx(0.9**6 + 0.1**6)


def test_differences_that_are_equal_but_for_rounding_have_no_spread() -> None:
    now, before = [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0]
    assert sensitivity(now, before, False) is None and effect_size(now, before, False) is None
    assert paired_bootstrap(now * 20, before * 20).low is None


def test_too_few_examples_can_show_nothing() -> None:
    # Even if every one of three examples changed in the same direction, p would be 2/2³/2 = 0.125.
    assert Sensitivity(True, 3, 0.5, 1.0).detectable is None
    assert sensitivity([1.0], [0.0], True) is None
    assert sensitivity([1.0, 2.0], [0.0, 1.0], False) is None
    few = Sensitivity(True, 20, 0.1, 1.0).detectable
    assert few is not None and few > 0.1  # more must change than did


def test_copies_of_examples_add_no_power() -> None:
    rng = np.random.default_rng(3)
    now, before = (rng.random(100) < 0.6).astype(float), (rng.random(100) < 0.5).astype(float)
    alone = sensitivity(now, before, True)
    copied = sensitivity(np.repeat(now, 8), np.repeat(before, 8), True, np.repeat(range(100), 8).tolist())
    assert alone is not None and copied is not None
    assert copied.design == pytest.approx(8, rel=0.02)
    assert copied.detectable == pytest.approx(alone.detectable, rel=0.03)


def test_groups_whose_changes_cancel_show_smaller_differences() -> None:
    # In each pair one answer is gained and one lost: the difference is known better than of single examples.
    now, before, pairs = [1.0, 0.0] * 60, [0.0, 1.0] * 60, [at // 2 for at in range(120)]
    paired, single = sensitivity(now, before, True, pairs), sensitivity(now, before, True)
    assert paired is not None and single is not None
    assert single.detectable > 5 * paired.detectable > 0


def test_groups_without_a_change_are_taken_to_change_as_a_whole() -> None:
    same, fours = [1.0] * 80, [at // 4 for at in range(80)]
    found = sensitivity(same, same, True, fours)
    assert found is not None and found.design == 4
    single = sensitivity(same, same, True)
    assert single is not None and single.design == 1


def test_tokens_of_blocks_are_weighed() -> None:
    # One long block and many short ones are worth fewer blocks.
    rng = np.random.default_rng(5)
    values, weights = rng.normal(0, 1, 200), np.r_[np.full(199, 1.0), 500.0]
    plain, weighed = (sensitivity(values, np.zeros(200), False, weights=one) for one in (None, weights))
    assert plain is not None and weighed is not None and plain.design == pytest.approx(1)
    assert weighed.detectable > 2 * plain.detectable
    equal = sensitivity(values, np.zeros(200), False, weights=[3.0] * 200)
    assert equal is not None and equal.detectable == pytest.approx(plain.detectable)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_a_detectable_difference_over_seeds_is_shown_in_four_of_five_draws(seeds: int) -> None:
    # Of draws with standard deviation 1 around the difference that is detectable for it.
    sample = np.arange(seeds) / np.std(np.arange(seeds), ddof=1)
    size = seeds_detectable(sample)
    assert size is not None
    draws = np.random.default_rng(seeds).normal(size, 1, (20_000, seeds))
    ps = stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert np.mean(ps < 0.05) == pytest.approx(0.8, abs=0.01)
    corrected = seeds_detectable(sample, 0.05 / 30)  # at the strictest step of Holm's correction over 30
    assert corrected is not None and corrected > size
    ps = stats.ttest_1samp(draws - size + corrected, 0, axis=1).pvalue
    assert np.mean(ps < 0.05 / 30) == pytest.approx(0.8, abs=0.01)
    assert seeds_detectable([0.1]) is None
    assert seeds_detectable([0.1, 0.1]) is None


def test_effect_sizes_by_hand() -> None:
    # 7 of 8 changed examples gained: g = 0.375; Clopper and Pearson's interval of 7/8 is 0.4735 to 0.9968.
    now, before = [1.0] * 7 + [0.0] + [1.0] * 4, [0.0] * 7 + [1.0] + [1.0] * 4
    found = effect_size(now, before, is_binary=True)
    assert found is not None
    assert (found.name, found.value) == ("cohen_g", 0.375)
    assert (found.low, found.high) == pytest.approx((0.4735 - 0.5, 0.9968 - 0.5), abs=1e-4)
    assert effect_size([1.0, 1.0], [1.0, 1.0], True) is None
    # Differences 1, 2, 3: mean 2, standard deviation 1.
    loss = effect_size([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], is_binary=False)
    assert loss is not None and (loss.name, loss.value) == ("cohen_d", 2.0)
    # The t-test's p is 0.074, so the interval holds 0. Its ends, by their definition: where t = 2 √3 is the
    # 0.975 and the 0.025 quantile.
    assert loss.low < 0 < loss.high
    shares = [stats.nct.cdf(2 * 3**0.5, 2, end * 3**0.5) for end in (loss.low, loss.high)]
    assert shares == pytest.approx([0.975, 0.025], abs=1e-5)
    assert effect_size([1.0, 1.0], [0.0, 0.0], False) is None
